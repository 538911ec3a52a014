//! Labels: closed sets of values. A value that is not in the set cannot be counted, so no label grows with traffic.

use std::fmt;

/// One label whose values are known at compile time.
pub trait Label: Copy + fmt::Debug + Send + Sync + 'static {
    /// The label's name.
    const NAME: &'static str;
    /// Every value, in order of [`index`](Self::index).
    const ALL: &'static [Self];
    /// The value as it is scraped.
    fn value(self) -> &'static str;
    /// Its place in [`ALL`](Self::ALL).
    fn index(self) -> usize;
}

/// Defines an enum as a label: variants, and the text each is scraped as.
#[macro_export]
macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $label:literal, { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $crate::metrics::Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn value(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
            fn index(self) -> usize {
                self as usize
            }
        }
    };
}
