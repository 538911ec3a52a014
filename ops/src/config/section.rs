//! Sections: structs whose fields are keys. The macro gives each its defaults, its loader and its entries in
//! the reference, from one list.

use std::{collections::BTreeMap, path::Path};

use config::{Value, ValueKind};

use super::{
    error::{ConfigError, Origin},
    setting::Setting,
};

/// A place in the merged configuration: the key and what is there.
#[derive(Debug)]
pub struct Node<'a> {
    /// `auth.jwt[0].leeway`
    pub key: String,
    pub value: &'a Value,
    /// What values without an origin came from.
    pub file: &'a Path,
}

/// What can be loaded over its defaults, and can describe its keys.
pub trait Load {
    fn load(&mut self, node: &Node<'_>) -> Result<(), ConfigError>;

    /// The keys below this one whose values differ in `other`, as far as that shows: secrets look alike. Empty for what
    /// is no section.
    fn differing(&self, _other: &Self) -> Vec<String>
    where
        Self: Sized,
    {
        Vec::new()
    }

    /// Adds an entry for every key under `key`.
    fn describe(
        &self,
        key: &str,
        doc: &[&'static str],
        shown: Option<&'static str>,
        entries: &mut Vec<Entry>,
    );
}

/// A key as the reference shows it.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key: String,
    pub expected: &'static str,
    pub default: String,
    /// Lines of the doc comment.
    pub doc: Vec<&'static str>,
}

impl<'a> Node<'a> {
    pub fn child(&self, name: &str, value: &'a Value) -> Self {
        let key = if self.key.is_empty() { name.to_owned() } else { format!("{}.{name}", self.key) };
        Self { key, value, file: self.file }
    }

    pub fn item(&self, index: usize, value: &'a Value) -> Self {
        Self { key: format!("{}[{index}]", self.key), value, file: self.file }
    }

    /// The pairs in order of their names, so that of several mistakes the same one is always reported.
    pub fn table(&self) -> Result<BTreeMap<&'a str, &'a Value>, ConfigError> {
        match &self.value.kind {
            ValueKind::Table(table) => Ok(table.iter().map(|(name, value)| (name.as_str(), value)).collect()),
            ValueKind::Nil => Ok(BTreeMap::new()),
            _ => Err(self.bad("a table of keys", false)),
        }
    }

    pub fn list(&self) -> Result<&'a [Value], ConfigError> {
        match &self.value.kind {
            ValueKind::Array(items) => Ok(items),
            ValueKind::Nil => Ok(&[]),
            _ => Err(self.bad("a list of tables", false)),
        }
    }

    pub fn bad(&self, expected: &'static str, secret: bool) -> ConfigError {
        let value = if secret { "(hidden)".to_owned() } else { shown(self.value) };
        ConfigError::BadValue {
            key: self.key.as_str().into(),
            value: value.into(),
            origin: self.origin(),
            expected,
        }
    }

    /// `known` are the keys that there are beside it.
    pub fn unknown(&self, name: &str, known: &[&str]) -> ConfigError {
        let nearest = known
            .iter()
            .map(|candidate| (edits(name, candidate), candidate))
            .filter(|&(edits, candidate)| edits <= candidate.len() / 3)
            .min()
            .map(|(_, candidate)| (*candidate).into());
        ConfigError::UnknownKey { key: self.key.as_str().into(), origin: self.origin(), nearest }
    }

    /// A table has no origin of its own: any value inside tells.
    pub fn origin(&self) -> Origin {
        match origin_text(self.value) {
            None if self.file.as_os_str().is_empty() => Origin::Default,
            None => Origin::File(self.file.into()),
            Some(text) if text.starts_with("--") => Origin::Flag(text.into()),
            Some(text) => Origin::Variable(text.into()),
        }
    }
}

fn origin_text(value: &Value) -> Option<&str> {
    match &value.kind {
        ValueKind::Table(table) => table.values().find_map(origin_text),
        ValueKind::Array(items) => items.iter().find_map(origin_text),
        _ => value.origin(),
    }
}

/// A sentence without the user information of the addresses in it, which may be a password. Whatever is before the last
/// `@` counts as such.
#[must_use]
pub fn without_passwords(sentence: &str) -> String {
    let (mut out, mut rest) = (String::new(), sentence);
    while let Some((before, after)) = rest.split_once("://") {
        let end = after.find([' ', '"', '\n']).unwrap_or(after.len());
        let address = &after[..end];
        out += &format!("{before}://{}", if address.contains('@') { "…@" } else { "" });
        rest = address.rfind('@').map_or(after, |at| &after[at + 1..]);
    }
    out + rest
}

/// A value in one line. User information in an address is left out: it may be a password.
fn shown(value: &Value) -> String {
    match &value.kind {
        // Also where it is no address: what was meant as one may lack its scheme, or a slash.
        ValueKind::String(text) => match (text.split_once("://"), text.rsplit_once('@')) {
            (Some((scheme, rest)), Some((_, host))) if rest.contains('@') => {
                format!("{:?}", format!("{scheme}://…@{host}"))
            }
            (_, Some((_, host))) => format!("{:?}", format!("…@{host}")),
            _ => format!("{text:?}"),
        },
        ValueKind::Table(_) => "(a table)".to_owned(),
        ValueKind::Array(_) => "(a list)".to_owned(),
        ValueKind::Nil => "(nothing)".to_owned(),
        plain => plain.to_string(),
    }
}

/// Levenshtein distance, one row at a time. Only runs on the way to an error.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

impl<T: Setting> Load for T {
    fn load(&mut self, node: &Node<'_>) -> Result<(), ConfigError> {
        if node.value.kind == ValueKind::Nil {
            return Ok(());
        }
        *self = T::read(node.value).ok_or_else(|| {
            let special = match &node.value.kind {
                ValueKind::String(text) => T::explain(text),
                _ => None,
            };
            node.bad(special.unwrap_or(T::EXPECTED), T::SECRET)
        })?;
        Ok(())
    }

    fn describe(
        &self,
        key: &str,
        doc: &[&'static str],
        shown: Option<&'static str>,
        entries: &mut Vec<Entry>,
    ) {
        let default = match (shown, self.show()) {
            (Some(shown), _) => shown.to_owned(),
            (None, none) if none == "none" => none,
            (None, value) => format!("`{value}`"),
        };
        entries.push(Entry { key: key.to_owned(), expected: T::EXPECTED, default, doc: doc.to_vec() });
    }
}

/// A list of sections: `[[auth.jwt]]`. A list in a later source replaces the whole list of an earlier one;
/// single keys of an entry can be set from the environment by its number.
#[derive(Debug, Clone, Default)]
pub struct List<T>(pub Vec<T>);

impl<T> std::ops::Deref for List<T> {
    type Target = Vec<T>;
    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T: Load + Default> Load for List<T> {
    fn load(&mut self, node: &Node<'_>) -> Result<(), ConfigError> {
        self.0 = node
            .list()?
            .iter()
            .enumerate()
            .map(|(index, value)| {
                let mut item = T::default();
                item.load(&node.item(index, value))?;
                Ok(item)
            })
            .collect::<Result<_, ConfigError>>()?;
        Ok(())
    }

    fn describe(
        &self,
        key: &str,
        doc: &[&'static str],
        shown: Option<&'static str>,
        entries: &mut Vec<Entry>,
    ) {
        T::default().describe(&format!("{key}[N]"), doc, shown, entries);
    }
}

/// Defines a section. `shown` replaces a default that depends on the machine in the reference.
#[macro_export]
macro_rules! section {
    ($(#[$meta:meta])* $name:ident {
        $($(#[doc = $doc:literal])* $field:ident: $type:ty = $default:expr $(, shown $shown:literal)?;)+
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone)]
        pub struct $name {
            $($(#[doc = $doc])* pub $field: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $crate::config::Load for $name {
            fn load(
                &mut self,
                node: &$crate::config::Node<'_>,
            ) -> Result<(), $crate::config::ConfigError> {
                for (name, value) in node.table()? {
                    let child = node.child(name, value);
                    match name {
                        $(stringify!($field) => self.$field.load(&child)?,)+
                        _ => return Err(child.unknown(name, &[$(stringify!($field)),+])),
                    }
                }
                Ok(())
            }

            fn differing(&self, other: &Self) -> Vec<String> {
                let mut keys = Vec::new();
                $(
                    if format!("{:?}", self.$field) != format!("{:?}", other.$field) {
                        let key = stringify!($field);
                        let below = self.$field.differing(&other.$field);
                        match below.is_empty() {
                            true => keys.push(key.to_owned()),
                            false => keys.extend(below.iter().map(|below| format!("{key}.{below}"))),
                        }
                    }
                )+
                keys
            }

            fn describe(
                &self,
                key: &str,
                _doc: &[&'static str],
                _shown: Option<&'static str>,
                entries: &mut Vec<$crate::config::Entry>,
            ) {
                let dot = if key.is_empty() { "" } else { "." };
                $(
                    let shown: Option<&'static str> = None$(.or(Some($shown)))?;
                    self.$field.describe(
                        &format!("{key}{dot}{}", stringify!($field)),
                        &[$($doc),*],
                        shown,
                        entries,
                    );
                )+
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_in_no_sentence() {
        for (sentence, shown) in [
            ("http://me:hunter2@h:1 does not answer", "http://…@h:1 does not answer"),
            ("the host of \"ws://me:hun@ter2@h\" has no address", "the host of \"ws://…@h\" has no address"),
            ("http://a, then https://me:hunter2@b/p", "http://a, then https://…@b/p"),
            ("redis://:hun/ter2@h", "redis://…@h"),
            ("mail ann@example.org", "mail ann@example.org"),
            ("http://h", "http://h"),
        ] {
            assert_eq!(without_passwords(sentence), shown);
        }
    }
}
