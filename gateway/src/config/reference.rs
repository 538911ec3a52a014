//! `docs/configuration.md`: the introduction, and the flags of a gateway.

use super::{Config, flags};

/// The reference of all keys as Markdown.
pub fn reference() -> String {
    tidegate_ops::config::reference(INTRODUCTION, &Config::default(), &Config::dev(), &flags::ALL)
}

const INTRODUCTION: &str = "\
# Configuration

<!-- Made from gateway/src/config by its tests; `BLESS=1 cargo test -p tidegate-gateway reference` writes it. -->

A gateway reads, each over the one before:

1. its defaults, or the defaults of `--dev`;
2. the TOML file named by `--config` or `TIDEGATE__CONFIG`;
3. environment variables that begin with `TIDEGATE__`: the key in upper case, `__` between its parts;
4. flags.

A key that does not exist, in the file or in the environment, and a value that does not fit are errors: one line
that names the key, the value, where it came from and what was expected; exit code 2. `tidegate gateway --check`
loads everything and exits.

Lists of plain values are written in a variable with commas between them. An entry of a list of tables is reached
by its number, from 0 to 99: `TIDEGATE__AUTH__JWT__0__SECRET_FILE`. An empty variable counts as not set. Variables
are matched in lower case, so a namespace or an app that is to be set by variables has a lower-case name:
`TIDEGATE__APPS__1__SECRET`.

Durations have units: `\"500ms\"`, `\"10s\"`, `\"5m\"`, `\"1h\"`, `\"1d\"`, also `\"1m30s\"`. Sizes are whole numbers of
bytes or have a binary unit: `65536`, `\"64KiB\"`, `\"1MiB\"`.

`[namespaces.default]` holds for channels whose namespace is not configured, and for those without one. Any other
namespace begins as a copy of it and changes what it names.
";
