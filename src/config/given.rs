//! How values of the file may be given: plain, one or several, here or somewhere else. No meaning.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::secret::Secret;

/// A text, number or boolean, as text.
#[derive(Debug)]
pub(super) struct Scalar(pub(super) String);

/// A single value, or a table that says more.
#[derive(Debug)]
pub(super) enum OrTable<T> {
    Scalar(Scalar),
    Table(T),
}

/// A text, or a list of texts.
#[derive(Debug)]
pub(super) struct List(pub(super) Vec<String>);

/// A secret, or where it is.
#[derive(Debug)]
pub(super) enum SecretSource {
    Text(Secret),
    Elsewhere(Elsewhere),
}

/// A secret, or a list of them, each of which may be somewhere else.
#[derive(Debug)]
pub(super) enum SecretSources {
    One(SecretSource),
    Several(Vec<SecretSource>),
}

/// Where a secret is: one key of these.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Elsewhere {
    pub(super) env: Option<String>,
    pub(super) file: Option<String>,
    pub(super) credential: Option<String>,
}

/// A text or a list of texts, or a table that says more.
#[derive(Debug)]
pub(super) enum ListOrTable<T> {
    List(List),
    Table(T),
}

/// A table, or a list of such.
#[derive(Debug)]
pub(super) enum Tables<T> {
    One(T),
    Several(Vec<T>),
}

// === impl Deserialize ===

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
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
        deserializer.deserialize_any(Any)
    }
}

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
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
        deserializer.deserialize_any(Any)
    }
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = SecretSource;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text in quotes, { env = \"NAME\" }, { file = \"PATH\" } or { credential = \"NAME\" }")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<SecretSource, E> {
                Ok(SecretSource::Text(Secret::new(text)))
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<SecretSource, A::Error> {
                Elsewhere::deserialize(MapAccessDeserializer::new(table)).map(SecretSource::Elsewhere)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OrTable<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Any<T> {
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
        deserializer.deserialize_any(Any(PhantomData))
    }
}

impl<'de> Deserialize<'de> for SecretSources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = SecretSources;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text in quotes, { env = \"NAME\" }, { file = \"PATH\" }, ")?;
                f.write_str("{ credential = \"NAME\" } or a list of these")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<SecretSources, E> {
                Ok(SecretSources::One(SecretSource::Text(Secret::new(text))))
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<SecretSources, A::Error> {
                let source = Elsewhere::deserialize(MapAccessDeserializer::new(table))?;
                Ok(SecretSources::One(SecretSource::Elsewhere(source)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<SecretSources, A::Error> {
                let mut sources = Vec::new();
                while let Some(source) = items.next_element()? {
                    sources.push(source);
                }
                Ok(SecretSources::Several(sources))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ListOrTable<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Any<T> {
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
        deserializer.deserialize_any(Any(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Tables<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Any<T> {
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
        deserializer.deserialize_any(Any(PhantomData))
    }
}
