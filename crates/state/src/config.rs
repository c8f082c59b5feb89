use std::path::PathBuf;

/// Which kind of store to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StoreChoice {
    /// The best this machine offers.
    #[default]
    Auto,
    Btrfs,
    Xfs,
    /// The state directory's own filesystem as it is.
    Directory,
}

/// How an [`crate::Engine`] is opened.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// State directory; one daemon at a time.
    pub home: PathBuf,
    pub store: StoreChoice,
    /// Apparent size of the store's sparse image in bytes.
    pub store_image_bytes: u64,
    /// Program and arguments that end up in `isolation::spawner::main`.
    pub spawner_program: PathBuf,
    pub spawner_args: Vec<String>,
    /// Empty cells kept ready.
    pub pool_size: usize,
}

impl EngineConfig {
    /// Defaults for a state directory and the daemon's own executable.
    pub fn new(home: PathBuf, program: PathBuf) -> Self {
        Self {
            home,
            store: StoreChoice::Auto,
            store_image_bytes: 64 << 30,
            spawner_program: program,
            spawner_args: vec!["__spawner".into()],
            pool_size: 4,
        }
    }
}
