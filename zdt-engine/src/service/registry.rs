//! The services that a program can run, by name.
//!
//! Must not know: what any of them does.

use super::{Service, demo::Demo};

/// Makes a service; called once in each worker.
pub type Constructor = fn() -> Box<dyn Service>;

/// Constructors by name. The first one added last is the default.
pub struct Services {
    entries: Vec<(String, Constructor)>,
}

impl Services {
    /// The services that come with zdt.
    pub fn builtin() -> Self {
        Self { entries: vec![("demo".to_owned(), || Box::new(Demo))] }
    }

    /// Adds an application's service, which becomes the default.
    pub fn with(mut self, name: &str, constructor: Constructor) -> Self {
        self.entries.push((name.to_owned(), constructor));
        self
    }

    /// Name of the service that runs when none is named.
    pub fn default_name(&self) -> &str {
        &self.entries[self.entries.len() - 1].0
    }

    /// All names, the default last.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// Makes the service of that name.
    pub fn create(&self, name: &str) -> Option<Box<dyn Service>> {
        self.entries.iter().rev().find(|(known, _)| known == name).map(|(_, make)| make())
    }
}
