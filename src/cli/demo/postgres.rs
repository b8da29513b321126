//! `--postgres`: a schema of the demo's own, which the relay creates and the demo drops.

use std::io::Write as _;

use super::environment::DemoStore;
use crate::cli::fixable::fixable;
use crate::cli::output;
use crate::queue::postgres::{Address, Connector, Settings, TlsMode};

/// A schema that no other demo uses.
pub(super) struct DemoSchema {
    url: String,
    settings: Settings,
}

impl DemoSchema {
    pub(super) fn new(url: &str) -> anyhow::Result<Self> {
        let defaults = Settings::new(url).map_err(|error| fixable(format!("--postgres: {error}"), error.remedy()))?;
        let is_local = defaults.server.addresses.iter().all(Address::is_local);
        let settings = Settings {
            schema: format!("wxrelay_demo_{:08x}", getrandom::u32()?),
            tls: if is_local { TlsMode::Off } else { TlsMode::default() },
            // A demo may be killed with its machine.
            accept_weak_durability: true,
            ..defaults
        };
        Ok(Self { url: url.to_owned(), settings })
    }

    /// The store of the demo's relay.
    pub(super) fn store(&self) -> DemoStore {
        let Settings { schema, tls, .. } = &self.settings;
        let tls = if *tls == TlsMode::Off { "tls = \"off\"\n" } else { "" };
        let keys = format!(
            "type = \"postgres\"\nurl = {:?}\nschema = {schema:?}\nstandby = \"none\"\naccept_weak_durability = true\n{tls}",
            self.url
        );
        DemoStore { keys, note: format!("The store is in PostgreSQL, in the schema {schema}, dropped at the end") }
    }

    /// Drops the schema, also after a demo that failed.
    pub(super) async fn remove(&self) -> anyhow::Result<()> {
        let schema = &self.settings.schema;
        let failed = |error: &dyn std::error::Error| {
            fixable(
                format!("the schema {schema} was not dropped: {error}"),
                format!("run DROP SCHEMA {schema} CASCADE"),
            )
        };
        let session = Connector::new(&self.settings).connect().await.map_err(|error| failed(&error))?;
        // A notice names what goes with it.
        let script = format!("SET client_min_messages = error; DROP SCHEMA IF EXISTS {schema} CASCADE");
        session.execute_script(&script).await.map_err(|error| failed(&error))?;
        writeln!(output::stderr(), "dropped the schema {schema}")?;
        Ok(())
    }
}
