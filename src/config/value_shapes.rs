//! The shapes that values of the file may have: plain, one or several, inline or stored elsewhere. Not here: their
//! meaning.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::secret::Secret;

/// A text, number or boolean, as text.
#[derive(Debug)]
pub(super) struct Scalar(pub(super) String);

/// A single value, or a table with details.
#[derive(Debug)]
pub(super) enum OrTable<T> {
    Scalar(Scalar),
    Table(T),
}

/// A text, or a list of texts.
#[derive(Debug)]
pub(super) struct List(pub(super) Vec<String>);

/// A secret, or where it is stored.
#[derive(Debug)]
pub(super) enum SecretSource {
    Text(Secret),
    Location(SecretLocation),
}

/// A secret, or a list of them, each inline or stored elsewhere.
#[derive(Debug)]
pub(super) enum SecretSources {
    One(SecretSource),
    Several(Vec<SecretSource>),
}

/// Where a secret is stored: exactly one of these keys is set.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SecretLocation {
    pub(super) env: Option<String>,
    pub(super) file: Option<String>,
    pub(super) credential: Option<String>,
}

/// A text or a list of texts, or a table with details.
#[derive(Debug)]
pub(super) enum ListOrTable<T> {
    List(List),
    Table(T),
}

/// A table, or a list of tables.
#[derive(Debug)]
pub(super) enum Tables<T> {
    One(T),
    Several(Vec<T>),
}

// === impl Deserialize ===

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;
        impl Visitor<'_> for ScalarVisitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a single value")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(text.to_owned()))
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
        }
        deserializer.deserialize_any(ScalarVisitor)
    }
}

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor;
        impl<'de> Visitor<'de> for ListVisitor {
            type Value = List;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text or a list of texts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<List, E> {
                Ok(List(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<List, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = items.next_element()? {
                    texts.push(text);
                }
                Ok(List(texts))
            }
        }
        deserializer.deserialize_any(ListVisitor)
    }
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SecretSourceVisitor;
        impl<'de> Visitor<'de> for SecretSourceVisitor {
            type Value = SecretSource;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text in quotes, { env = \"NAME\" }, { file = \"PATH\" } or { credential = \"NAME\" }")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<SecretSource, E> {
                Ok(SecretSource::Text(Secret::new(text)))
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<SecretSource, A::Error> {
                SecretLocation::deserialize(MapAccessDeserializer::new(table)).map(SecretSource::Location)
            }
        }
        deserializer.deserialize_any(SecretSourceVisitor)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OrTable<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OrTableVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OrTableVisitor<T> {
            type Value = OrTable<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a single value or a table")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<OrTable<T>, E> {
                Ok(OrTable::Scalar(Scalar(text.to_owned())))
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<OrTable<T>, E> {
                Ok(OrTable::Scalar(Scalar(value.to_string())))
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<OrTable<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(table)).map(OrTable::Table)
            }
        }
        deserializer.deserialize_any(OrTableVisitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for SecretSources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SecretSourcesVisitor;
        impl<'de> Visitor<'de> for SecretSourcesVisitor {
            type Value = SecretSources;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text in quotes, { env = \"NAME\" }, { file = \"PATH\" }, ")?;
                f.write_str("{ credential = \"NAME\" } or a list of these")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<SecretSources, E> {
                Ok(SecretSources::One(SecretSource::Text(Secret::new(text))))
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<SecretSources, A::Error> {
                let source = SecretLocation::deserialize(MapAccessDeserializer::new(table))?;
                Ok(SecretSources::One(SecretSource::Location(source)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<SecretSources, A::Error> {
                let mut sources = Vec::new();
                while let Some(source) = items.next_element()? {
                    sources.push(source);
                }
                Ok(SecretSources::Several(sources))
            }
        }
        deserializer.deserialize_any(SecretSourcesVisitor)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ListOrTable<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListOrTableVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ListOrTableVisitor<T> {
            type Value = ListOrTable<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, a list of texts or a table")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ListOrTable<T>, E> {
                Ok(ListOrTable::List(List(vec![text.to_owned()])))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<ListOrTable<T>, A::Error> {
                List::deserialize(SeqAccessDeserializer::new(items)).map(ListOrTable::List)
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<ListOrTable<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(table)).map(ListOrTable::Table)
            }
        }
        deserializer.deserialize_any(ListOrTableVisitor(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Tables<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TablesVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for TablesVisitor<T> {
            type Value = Tables<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table or a list of tables")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Tables<T>, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(items)).map(Tables::Several)
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Tables<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(table)).map(Tables::One)
            }
        }
        deserializer.deserialize_any(TablesVisitor(PhantomData))
    }
}
