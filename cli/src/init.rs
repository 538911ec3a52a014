//! `tidegate init`: a commented configuration and secrets that nobody else has.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// The secrets, by file name: what compose.yml mounts and the configuration names.
const SECRETS: [&str; 5] = ["api-key", "jwt", "app-secret", "redis-password", "grafana-password"];

/// Why nothing was written, or not all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    #[error("{} is there already: name another directory, or remove it first", directory.display())]
    Exists { directory: PathBuf },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the system gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

/// Writes everything and gives what to say.
pub(crate) fn run(directory: &Path) -> Result<String, InitError> {
    let write = |path: &Path| {
        let path = path.to_owned();
        move |source| InitError::Write { path, source }
    };
    let secrets = directory.join("secrets");
    let private = |path: &Path| fs::DirBuilder::new().mode(0o700).create(path);
    match private(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(InitError::Exists { directory: directory.to_owned() });
        }
        made => made.map_err(write(directory))?,
    }
    private(&secrets).map_err(write(&secrets))?;
    let absolute = fs::canonicalize(&secrets).map_err(write(&secrets))?;
    for name in SECRETS {
        create(&secrets.join(name), &format!("{}\n", secret()?)).map_err(write(&secrets.join(name)))?;
    }
    let key = secret()?;
    let configuration = configuration(&absolute, &key[..20]);
    let file = directory.join("gateway.toml");
    create(&file, &configuration).map_err(write(&file))?;
    Ok(said(directory))
}

/// For its owner alone, and never over another file.
fn create(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

/// 192 bits in hexadecimal digits: fits into a URL, a header and a shell without quotes.
fn secret() -> Result<String, InitError> {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn configuration(secrets: &Path, app_key: &str) -> String {
    let secrets = toml_text(&secrets.display().to_string());
    format!(
        r#"# Tidegate's gateway. docs/configuration.md has every key with its default.
# Check a change:  tidegate gateway --config gateway.toml --check

# Where clients connect; 0.0.0.0:8000 for those of other machines.
listen = "127.0.0.1:8000"
# Metrics, health and drain: for operators and probes, never for the public.
internal = "127.0.0.1:9000"

# One process needs nothing else. Several share one Redis (docs/redis.md):
# backplane = "redis://127.0.0.1:6379"
# [redis]
# password_file = "{secrets}/redis-password"

# Your application publishes, reads and disconnects with this key.
[[auth.api_keys]]
name = "backend"
key_file = "{secrets}/api-key"
scopes = ["publish", "read", "admin"]

# Your clients show a token that your application signs with this secret (docs/authentication.md).
# For a first try: tidegate token --sub ann --channel 'room:*'
[[auth.jwt]]
algorithm = "HS256"
secret_file = "{secrets}/jwt"

# Pages that may connect; by default only those of this very host and port.
# [auth]
# allowed_origins = ["https://app.example.org"]

# What holds for every channel. A namespace is what stands before the first ':' of a channel's name.
[namespaces.default]
# A client that comes back gets what it missed, from so many messages and so long.
history_size = 100
history_age = "5m"

# Rooms: clients may publish what their token allows, and see who is there.
[namespaces.room]
client_publish = "token"
presence = true

# Anyone may listen to news, without a token.
[namespaces.news]
anonymous_subscribe = true

# For pusher-js, Laravel Echo and Pusher's server SDKs (docs/migrate-from-pusher.md).
[apps.main]
key = "{app_key}"
secret_file = "{secrets}/app-secret"
"#
    )
}

/// What a basic string of TOML needs.
fn toml_text(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn said(directory: &Path) -> String {
    let at = directory.display();
    format!(
        "{at}/gateway.toml   the configuration, to be read and changed\n\
         {at}/secrets/       fresh secrets, each a file that only you may read\n\
         \n  start    tidegate gateway --config {at}/gateway.toml\
         \n  publish  curl -H \"authorization: Bearer $(cat {at}/secrets/api-key)\" -d hello \
         http://127.0.0.1:8000/v1/channels/news/publish\
         \n  listen   curl -N 'http://127.0.0.1:8000/sse?channel=news'\
         \n  token    tidegate token --secret-file {at}/secrets/jwt --sub ann --channel 'room:*'\n"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt as _;

    use tidegate_gateway::config::{Config, Sources};

    use super::*;

    #[test]
    fn what_it_writes_is_a_good_configuration_that_only_its_owner_reads() {
        let directory = std::env::temp_dir().join(format!("tidegate-init-{}", std::process::id()));
        let said = run(&directory).unwrap();
        assert!(said.contains("--secret-file"), "{said}");
        let file = directory.join("gateway.toml");
        let config = Config::load(&Sources { file: Some(file.clone()), ..Sources::default() }).unwrap();
        assert_eq!(config.auth.api_keys.len(), 1);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join("secrets")), mode(&file)), (0o700, 0o700, 0o600));
        let secrets = SECRETS.map(|name| {
            let path = directory.join("secrets").join(name);
            assert_eq!(mode(&path), 0o600, "{name}");
            fs::read_to_string(path).unwrap()
        });
        for (index, secret) in secrets.iter().enumerate() {
            assert!(secret.trim_end().len() == 48 && !secrets[..index].contains(secret));
        }
        assert!(matches!(run(&directory), Err(InitError::Exists { .. })));
        fs::remove_dir_all(&directory).unwrap();
    }
}
