//! Shards that lie on a server: `http(s)://`, `s3://`, `gs://`, `az://`.
//!
//! ```text
//! URL ─▶ store (object_store, our HTTP client) ─▶ fetch (async, retries, read-ahead)
//!                                                    └─pieces─▶ reader (Read, skip) ─▶ cache
//! ```

mod cache;
mod fetch;
mod http;
mod reader;
mod store;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use crossbeam_channel::bounded;
use futures_util::stream::{StreamExt, iter};
use object_store::ObjectStore;
use object_store::path::Path;
use tokio::runtime::{Builder, Handle, Runtime};

use super::{SHARD_SUFFIXES, SourceOptions, redact};
use cache::Cache;
use fetch::Object;
pub use reader::RemoteReader;
use store::Cloud;

/// Threads that move the bytes of all shards: one saturates 10 Gbit/s, with TLS about half.
const THREADS: usize = 2;
/// Shards asked about at a time.
const ASKED_AT_A_TIME: usize = 64;
const WILDCARDS: [char; 3] = ['*', '?', '['];

/// The one runtime of the process, with threads of its own.
fn runtime() -> io::Result<Handle> {
    static RUNTIME: OnceLock<io::Result<Runtime>> = OnceLock::new();
    let start = || {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(THREADS).thread_name("shard-fetch").enable_all().build()
    };
    match RUNTIME.get_or_init(start) {
        Ok(runtime) => Ok(runtime.handle().clone()),
        Err(e) => Err(io::Error::new(e.kind(), format!("no threads for the network: {e}"))),
    }
}

/// Waits for a future from a thread that is not the runtime's.
fn wait<T: Send + 'static>(
    on: &Handle,
    future: impl Future<Output = T> + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = bounded(1);
    on.spawn(async move { sender.send(future.await) });
    receiver.recv().map_err(|_| "the transfer ended without a word".into())
}

/// What the remote shards of one list share.
pub(super) struct Network {
    runtime: Handle,
    client: reqwest::Client,
    options: Arc<SourceOptions>,
    cache: Option<Cache>,
    buckets: HashMap<String, Arc<dyn ObjectStore>>,
}

/// A shard on a server.
#[derive(Clone)]
pub struct Remote {
    /// With whatever secrets it contains.
    url: Arc<str>,
    place: Place,
    /// Told by the listing that found it.
    listed_size: Option<u64>,
    runtime: Handle,
    client: reqwest::Client,
    options: Arc<SourceOptions>,
    cache: Option<Cache>,
}

#[derive(Clone)]
enum Place {
    Url,
    Bucket(Cloud, Arc<dyn ObjectStore>, Path),
}

/// What opening a remote shard gives.
pub enum Opened {
    /// A complete copy in the cache.
    Local(File),
    /// The transfer.
    Transfer(Box<RemoteReader>),
}

/// Asks about all of them, many at a time; `None` is the answer where there is none.
fn ask_all<T: Send + 'static, F: Future<Output = Option<T>> + Send + 'static>(
    remotes: &[&Remote],
    ask: impl Fn(Remote) -> F + Send + 'static,
) -> Vec<Option<T>> {
    let Some(first) = remotes.first() else { return Vec::new() };
    let all: Vec<Remote> = remotes.iter().map(|remote| (*remote).clone()).collect();
    let answers = async move { iter(all).map(ask).buffered(ASKED_AT_A_TIME).collect().await };
    wait(&first.runtime, answers).unwrap_or_else(|_| remotes.iter().map(|_| None).collect())
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Remote").field(&redact(&self.url)).finish()
    }
}

impl PartialEq for Remote {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
    }
}

impl Eq for Remote {}

impl Network {
    /// # Errors
    /// The threads, TLS or the cache's directory cannot be set up.
    pub(super) fn new(options: &SourceOptions) -> Result<Self, String> {
        let cache = options.cache.as_ref().map(|cache| {
            let made = std::fs::create_dir_all(&cache.dir);
            made.map_err(|e| format!("cannot make the cache {}: {e}", cache.dir.display()))?;
            Ok::<_, String>(Cache::new(cache))
        });
        Ok(Self {
            runtime: runtime().map_err(|e| e.to_string())?,
            client: http::client(options)?,
            options: Arc::new(options.clone()),
            cache: cache.transpose()?,
            buckets: HashMap::new(),
        })
    }

    /// The shards that a URL without braces names: itself, or what lies below it.
    ///
    /// # Errors
    /// It is no URL, a setting of the store is wrong, or it cannot be listed.
    pub(super) fn list(&mut self, scheme: &str, url: &str) -> Result<Vec<Remote>, String> {
        let Some(cloud) = Cloud::of(scheme) else {
            if url.ends_with('/') || url.split('?').next().is_some_and(|path| path.contains('*')) {
                return Err("a web server has no list of its files; name them: \
                            `{000..099}.tar`"
                    .into());
            }
            store::single(url, self.client.clone())?;
            return Ok(vec![self.remote(url, Place::Url, None)]);
        };
        let behind = scheme.len() + "://".len();
        let (bucket, key) = url[behind..].split_once('/').unwrap_or((&url[behind..], ""));
        let bucket = &url[..behind + bucket.len()];
        let store = self.bucket(cloud, bucket)?;
        if !key.is_empty() && !key.ends_with('/') && !key.contains(WILDCARDS) {
            let path = Path::parse(key).map_err(|e| http::root_cause(&e))?;
            return Ok(vec![self.remote(url, Place::Bucket(cloud, store, path), None)]);
        }
        let found = self.list_bucket(cloud, &store, key)?;
        let remotes = found.into_iter().map(|(path, size)| {
            let url = format!("{bucket}/{path}");
            self.remote(&url, Place::Bucket(cloud, Arc::clone(&store), path), Some(size))
        });
        Ok(remotes.collect())
    }

    fn bucket(&mut self, cloud: Cloud, url: &str) -> Result<Arc<dyn ObjectStore>, String> {
        if let Some(store) = self.buckets.get(url) {
            return Ok(Arc::clone(store));
        }
        let service = http::Service::new(self.client.clone());
        let store = store::bucket(cloud, url, service, &self.options)?;
        self.buckets.insert(url.into(), Arc::clone(&store));
        Ok(store)
    }

    /// Keys that match `pattern`, sorted; below a folder (`a/`), all its shards.
    fn list_bucket(
        &self,
        cloud: Cloud,
        store: &Arc<dyn ObjectStore>,
        pattern: &str,
    ) -> Result<Vec<(Path, u64)>, String> {
        let fixed = pattern.find(WILDCARDS).unwrap_or(pattern.len());
        let folder = pattern[..fixed].rsplit_once('/').map_or("", |(folder, _)| folder);
        let wanted = glob::Pattern::new(pattern).map_err(|e| format!("bad glob: {e}"))?;
        let is_folder = fixed == pattern.len();
        let options = glob::MatchOptions {
            case_sensitive: true,
            require_literal_separator: true,
            require_literal_leading_dot: false,
        };
        let deep = pattern[fixed..].contains('/') || pattern.contains("**");
        let prefix = Path::parse(folder).map_err(|e| http::root_cause(&e))?;
        let (store, settings) = (Arc::clone(store), Arc::clone(&self.options));
        let list = async move { fetch::list(&store, &prefix, deep, &settings).await };
        let found = wait(&self.runtime, list)?.map_err(|failure| failure.text(cloud.hint()))?;
        let mut found: Vec<_> = found.into_iter().map(|meta| (meta.location, meta.size)).collect();
        found.retain(|(path, _)| match is_folder {
            true => SHARD_SUFFIXES.iter().any(|suffix| path.as_ref().ends_with(suffix)),
            false => wanted.matches_with(path.as_ref(), options),
        });
        found.sort();
        Ok(found)
    }

    fn remote(&self, url: &str, place: Place, listed_size: Option<u64>) -> Remote {
        Remote {
            url: url.into(),
            place,
            listed_size,
            runtime: self.runtime.clone(),
            client: self.client.clone(),
            options: Arc::clone(&self.options),
            cache: self.cache.clone(),
        }
    }
}

impl Remote {
    /// The URL without its secrets.
    pub fn name(&self) -> String {
        redact(&self.url)
    }

    /// The same bucket and key at another endpoint is another shard.
    fn cache_key(&self) -> String {
        match &self.place {
            Place::Url => Cache::key(&self.url, ""),
            Place::Bucket(cloud, ..) => Cache::key(&self.url, &cloud.account(&self.options)),
        }
    }

    fn object(&self) -> Result<Object, String> {
        self.object_beside("")
    }

    /// What is called as the shard, and `suffix`.
    fn object_beside(&self, suffix: &str) -> Result<Object, String> {
        let (store, path, hint) = match &self.place {
            Place::Url if suffix.is_empty() || !self.url.contains(['?', '#']) => {
                let url = format!("{}{suffix}", self.url);
                (store::single(&url, self.client.clone())?, Path::default(), "")
            }
            // What is signed for one file opens no other.
            Place::Url => return Err("nothing lies beside a URL with a query".into()),
            Place::Bucket(cloud, store, path) => {
                let path = Path::parse(format!("{path}{suffix}")).map_err(|e| e.to_string())?;
                (Arc::clone(store), path, cloud.hint())
            }
        };
        Ok(Object {
            store,
            path,
            options: Arc::clone(&self.options),
            hint,
            version: OnceLock::new(),
            is_whole: AtomicBool::new(false),
        })
    }

    /// Opens the shard; what is in the cache is not asked for again. Nothing is sent before the
    /// first read.
    ///
    /// # Errors
    /// It is no URL.
    pub fn open(&self, stop: Arc<AtomicBool>) -> io::Result<Opened> {
        let cache = self.cache.as_ref().map(|cache| (cache.clone(), self.cache_key()));
        if let Some((cache, key)) = &cache
            && let Some(file) = cache.find(key)
        {
            return Ok(Opened::Local(file));
        }
        let object = self.object().map_err(io::Error::other)?;
        let reader = RemoteReader::new(self.runtime.clone(), object, stop, cache);
        Ok(Opened::Transfer(Box::new(reader)))
    }

    /// Sizes in bytes; `None` for what is not there or does not tell.
    pub fn sizes(remotes: &[&Remote]) -> Vec<Option<u64>> {
        ask_all(remotes, |remote| async move { remote.size().await })
    }

    async fn size(&self) -> Option<u64> {
        match (self.listed_size, self.object()) {
            (None, Ok(object)) => object.head().await,
            (listed, _) => listed,
        }
    }

    /// Of the file that is called as each shard and `suffix`, the first bytes, at most `limit`, and
    /// the shard's size; `None` where either is not to be had.
    pub fn beside(
        remotes: &[&Remote],
        suffix: &'static str,
        limit: usize,
    ) -> Vec<Option<(Vec<u8>, u64)>> {
        ask_all(remotes, move |remote| async move {
            let beginning = remote.object_beside(suffix).ok()?.beginning(limit).await?;
            Some((beginning, remote.size().await?))
        })
    }
}
