//! Where settings come from, and how the sources are laid over each other: file, then environment, then flags.

use std::{
    collections::HashMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use config::{ConfigBuilder, FileFormat, Map, Source, Value, builder::DefaultState};

use super::{
    error::{ConfigError, Empty},
    section::Node,
    setting::Secret,
};

/// What variables begin with. Two underscores: with one, the variables that Kubernetes adds for a Service named
/// `tidegate` (`TIDEGATE_PORT`, `TIDEGATE_SERVICE_HOST`) would be unknown keys.
pub const PREFIX: &str = "TIDEGATE__";

/// Names the configuration file where no `--config` does.
const FILE_VARIABLE: &str = "TIDEGATE__CONFIG";

/// Everything that a configuration is made of.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--config`
    pub file: Option<PathBuf>,
    /// The process environment; only variables that begin with [`PREFIX`] matter.
    pub environment: Vec<(OsString, OsString)>,
    /// Flags, each with the text that was given.
    pub overrides: Vec<(Flag, String)>,
}

/// Reads a configuration as it was read at the start, from its file, variables and flags.
pub struct Loader<C>(Box<dyn Fn() -> Result<C, ConfigError> + Send + Sync>);

impl<C> Loader<C> {
    pub fn new(load: impl Fn() -> Result<C, ConfigError> + Send + Sync + 'static) -> Self {
        Self(Box::new(load))
    }

    pub fn load(&self) -> Result<C, ConfigError> {
        (self.0)()
    }
}

impl<C> std::fmt::Debug for Loader<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Loader")
    }
}

/// A flag of the command line that sets a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flag {
    /// As it is written, with its dashes.
    pub name: &'static str,
    pub key: &'static str,
}

impl Sources {
    /// With the environment of this process. The only place that reads it.
    pub fn from_process(file: Option<PathBuf>, overrides: Vec<(Flag, String)>) -> Self {
        Self { file, environment: std::env::vars_os().collect(), overrides }
    }

    /// Reads the file and lays all sources over each other.
    pub fn merge(&self) -> Result<Merged, ConfigError> {
        let mut variables = self.variables()?;
        let file = variables.remove(FILE_VARIABLE).map(PathBuf::from);
        let file = self.file.clone().or(file);
        let mut builder = config::Config::builder();
        if let Some(path) = &file {
            builder = builder.add_source(FileText::read(path)?);
        }
        let (empty, set) = variables.into_iter().partition::<Vec<_>, _>(|(_, value)| value.is_empty());
        builder = builder.add_source(Layer::variables(&set)).add_source(Layer::flags(&self.overrides));
        let path = file.unwrap_or_default();
        let empty = build(config::Config::builder().add_source(Layer::variables(&empty)), &path)?;
        Ok(Merged { tree: build(builder, &path)?, empty, file: path })
    }

    /// The variables that are ours.
    fn variables(&self) -> Result<HashMap<&str, &str>, ConfigError> {
        let mut variables = HashMap::new();
        for (name, value) in &self.environment {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
            let value = value.to_str().ok_or_else(|| ConfigError::NotUnicode { variable: name.into() })?;
            variables.insert(name, value);
        }
        Ok(variables)
    }
}

/// The sources laid over each other.
#[derive(Debug)]
pub struct Merged {
    tree: Value,
    /// Variables that are empty. They count as not set, because `NAME=${NAME:-}` in a compose file means that;
    /// but their names must be right, and they must not hide what the file says.
    empty: Value,
    /// Where values without an origin are from.
    file: PathBuf,
}

impl Merged {
    /// What was set.
    pub fn root(&self) -> Node<'_> {
        self.node(&self.tree)
    }

    /// The keys whose variables are empty: to be loaded into something that is thrown away, for their names' sake.
    pub fn empty(&self) -> Node<'_> {
        self.node(&self.empty)
    }

    fn node<'a>(&'a self, value: &'a Value) -> Node<'a> {
        Node { key: String::new(), value, file: &self.file }
    }
}

/// Reads the file with a secret that the setting `key` names. Editors end files with a line end that is no part of
/// the secret.
pub fn read_secret(key: &str, path: &Path) -> Result<Secret, ConfigError> {
    let mut bytes = std::fs::read(path).map_err(|source| ConfigError::KeyFile {
        key: key.into(),
        path: path.to_owned(),
        source,
    })?;
    while let Some(b'\r' | b'\n') = bytes.last() {
        bytes.pop();
    }
    match bytes.is_empty() {
        false => Ok(Secret::new(&bytes)),
        true => {
            Err(ConfigError::Unusable { key: key.into(), path: Some(path.to_owned()), problem: Empty.into() })
        }
    }
}

/// The file, parsed.
#[derive(Debug, Clone)]
struct FileText(Map<String, Value>);

impl FileText {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
        config::File::from_str(&text, FileFormat::Toml)
            .collect()
            .map(Self)
            .map_err(|error| syntax(path, &text, &error))
    }
}

impl Source for FileText {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

/// Values with their keys' paths, each with the variable or flag that it came from.
#[derive(Debug, Clone)]
struct Layer(Map<String, Value>);

impl Layer {
    /// An empty variable becomes 'nothing', which leaves a setting as it is.
    fn variables(variables: &[(&str, &str)]) -> Self {
        let values = variables
            .iter()
            .map(|(name, value)| {
                let key = key_of(name).unwrap_or_else(|| (*name).to_owned());
                (key, Value::new(Some(&(*name).to_owned()), (!value.is_empty()).then_some(*value)))
            })
            .collect();
        Self(values)
    }

    fn flags(overrides: &[(Flag, String)]) -> Self {
        let values = overrides
            .iter()
            .map(|(flag, text)| (flag.key.to_owned(), Value::new(Some(&flag.name.to_owned()), text.as_str())))
            .collect();
        Self(values)
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

/// `TIDEGATE__AUTH__JWT__0__KID` → `auth.jwt[0].kid`, `TIDEGATE__APPS__1__KEY` → `apps.1.key`: no list is at the top, so
/// that what follows the first name is a name too. `None`: not a key at all.
fn key_of(variable: &str) -> Option<String> {
    let mut key = String::new();
    for (place, segment) in variable.strip_prefix(PREFIX)?.to_ascii_lowercase().split("__").enumerate() {
        match segment {
            "" => return None,
            // Two digits: the index becomes the length of a list, which must not exhaust memory.
            index if place > 1 && index.len() <= 2 && index.bytes().all(|b| b.is_ascii_digit()) => {
                key.push_str(&format!("[{index}]"));
            }
            name if key.is_empty() => key.push_str(name),
            name => key.push_str(&format!(".{name}")),
        }
    }
    Some(key)
}

/// Nothing can fail here: the file is parsed already, and a layer's collection is a copy.
fn build(builder: ConfigBuilder<DefaultState>, path: &Path) -> Result<Value, ConfigError> {
    builder.build().map(|merged| merged.cache).map_err(|error| syntax(path, "", &error))
}

fn syntax(path: &Path, text: &str, error: &config::ConfigError) -> ConfigError {
    let found = match error {
        config::ConfigError::FileParse { cause, .. } => cause.downcast_ref::<toml::de::Error>(),
        _ => None,
    };
    let (at, problem) = match found {
        Some(error) => (error.span().map_or(0, |span| span.start), error.message().to_owned()),
        None => (0, error.to_string()),
    };
    let before = text.get(..at).unwrap_or(text);
    ConfigError::Syntax {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before.chars().rev().take_while(|c| *c != '\n').count() + 1,
        problem: problem.replace('\n', "; ").into(),
    }
}
