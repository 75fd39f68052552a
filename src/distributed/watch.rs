//! Who is alive, and at what: each rank tells rank 0 every second what it does, on a thread and a
//! connection of their own. A rank that is gone, silent or stuck ends all of them, and one message
//! says which.
//!
//! | what happens | noticed |
//! |---|---|
//! | a process ends without a word | when its connection closes: at once |
//! | a rank tells of an error | at once |
//! | a machine or the network is gone, a process is stopped | after [`SILENCE`] without a word |
//! | a rank does not get on, and others wait for it | after `--dist-timeout` |

use super::link::{Inbox, send};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a rank may say nothing, if `--dist-timeout` is not shorter.
pub const SILENCE: Duration = Duration::from_secs(30);
/// How often it says something.
const PULSE: Duration = Duration::from_secs(1);
/// How often connections are looked at.
const TICK: Duration = Duration::from_millis(20);

/// What a rank is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// In words: `step 17 of epoch 2`.
    pub what: String,
    /// Whether it waits for other ranks, so that nobody need wait for it.
    pub waits: bool,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.what.is_empty() { "starting" } else { &self.what })
    }
}

/// Why all ranks end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// One sentence: which rank, on which machine, at what.
    pub message: String,
    /// Whether this rank is to say so, for no other has.
    #[serde(skip)]
    pub speaks: bool,
}

impl Verdict {
    fn new(message: String) -> Self {
        Self { message, speaks: false }
    }
}

/// One message of the watch.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// What the sender is at, and for how many milliseconds.
    At(Stage, u64),
    /// The sender is done, and will close.
    Bye,
    /// The sender cannot go on.
    Failed(String),
    /// All end.
    End(Verdict),
}

/// One rank as others name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Peer {
    pub rank: usize,
    pub host: String,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} on {}", self.rank, self.host)
    }
}

/// Tells more of a stage when it is asked for.
pub type Detail = Box<dyn Fn() -> String + Send>;

/// What this rank is at, as its thread reads it.
struct Now {
    stage: Stage,
    detail: Option<Detail>,
    since: Instant,
    failed: Option<String>,
}

impl Now {
    fn stage(&self) -> Stage {
        let Stage { what, waits } = self.stage.clone();
        let what = match &self.detail {
            Some(detail) => format!("{what}: {}", detail()),
            None => what,
        };
        Stage { what, waits }
    }
}

struct Shared {
    now: Mutex<Now>,
    leaving: AtomicBool,
}

impl Shared {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is to say.
    fn word(&self) -> Word {
        let now = self.now();
        match &now.failed {
            Some(error) => Word::Failed(error.clone()),
            None if self.leaving.load(Ordering::Relaxed) => Word::Bye,
            None => Word::At(now.stage(), now.since.elapsed().as_millis() as u64),
        }
    }
}

/// A rank's part in the watch. A clone is the same.
#[derive(Clone)]
pub struct Watch {
    shared: Arc<Shared>,
}

impl Default for Watch {
    /// Of a process that nobody watches.
    fn default() -> Self {
        let (stage, since) = (Stage::default(), Instant::now());
        let now = Now { stage, detail: None, since, failed: None };
        Self { shared: Arc::new(Shared { now: Mutex::new(now), leaving: AtomicBool::new(false) }) }
    }
}

impl Watch {
    /// This rank begins something, or gets on with it: the clock starts anew.
    pub fn enter(&self, what: impl Into<String>) {
        self.set(Stage { what: what.into(), waits: false }, None);
    }

    /// As [`Watch::enter`], with what is asked for when there is something to tell.
    pub fn enter_telling(&self, what: impl Into<String>, detail: Detail) {
        self.set(Stage { what: what.into(), waits: false }, Some(detail));
    }

    /// This rank waits for others until the guard goes; then it is at what it was before.
    pub fn wait(&self) -> Waiting<'_> {
        let mut now = self.shared.now();
        now.stage.waits = true;
        now.since = Instant::now();
        Waiting { watch: self }
    }

    fn set(&self, stage: Stage, detail: Option<Detail>) {
        let mut now = self.shared.now();
        (now.stage, now.detail, now.since) = (stage, detail, Instant::now());
    }

    /// This rank cannot go on.
    pub(super) fn fail(&self, error: String) {
        self.shared.now().failed = Some(error);
    }

    pub(super) fn leave(&self) {
        self.shared.leaving.store(true, Ordering::Relaxed);
    }
}

/// See [`Watch::wait`].
pub struct Waiting<'a> {
    watch: &'a Watch,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut now = self.watch.shared.now();
        (now.stage.waits, now.since) = (false, Instant::now());
    }
}

/// What the thread of a rank has.
pub(super) struct Sentry {
    pub watch: Watch,
    /// This rank.
    pub me: Peer,
    /// Whether it speaks for its machine where rank 0 does not.
    pub is_local_first: bool,
    /// Rank 0: all others; another: rank 0.
    pub others: Vec<(Peer, TcpStream)>,
    /// How long a rank may be at one thing while others wait.
    pub patience: Duration,
    /// Told, once, why all end.
    pub end: Box<dyn FnOnce(Verdict) + Send>,
}

/// Another rank, as heard of.
struct Heard {
    peer: Peer,
    stream: TcpStream,
    inbox: Inbox,
    last: Instant,
    stage: Stage,
    /// How long it had been at that when it last said so.
    for_ms: u64,
    is_done: bool,
    /// Whether it says to all why they end.
    has_spoken: bool,
}

impl Heard {
    /// As it said itself: one that says nothing may be at something else by now.
    fn stuck_for(&self) -> Duration {
        Duration::from_millis(self.for_ms)
    }

    /// Takes in what has come. What it says of an end is the verdict.
    fn listen(&mut self) -> Option<Verdict> {
        while !self.is_done {
            let message = match self.inbox.next(&self.stream) {
                Ok(Some(message)) => message,
                Ok(None) => return None,
                Err(_) => return Some(self.verdict("is gone")),
            };
            self.last = Instant::now();
            match serde_json::from_slice(&message) {
                Ok(Word::At(stage, for_ms)) => (self.stage, self.for_ms) = (stage, for_ms),
                Ok(Word::Bye) => self.is_done = true,
                Ok(Word::Failed(error)) => {
                    let message = format!("{} cannot go on: {error}", self.peer);
                    return Some(Verdict::new(message));
                }
                Ok(Word::End(verdict)) => {
                    self.has_spoken = true;
                    return Some(verdict);
                }
                Err(_) => return Some(self.verdict("talks nonsense")),
            }
        }
        None
    }

    fn verdict(&self, what: &str) -> Verdict {
        Verdict::new(format!("{} {what}; it was at: {}", self.peer, self.stage))
    }
}

impl Sentry {
    /// Starts the thread.
    pub fn start(self) -> std::io::Result<JoinHandle<()>> {
        for (_, stream) in &self.others {
            stream.set_nonblocking(true)?;
        }
        std::thread::Builder::new().name("watch".into()).spawn(move || self.run())
    }

    fn run(self) {
        let Self { watch, me, is_local_first, others, patience, end } = self;
        let now = Instant::now();
        let heard = |(peer, stream)| Heard {
            peer,
            stream,
            inbox: Inbox::default(),
            last: now,
            stage: Stage::default(),
            for_ms: 0,
            is_done: false,
            has_spoken: false,
        };
        let mut others: Vec<Heard> = others.into_iter().map(heard).collect();
        let mut told: Option<Instant> = None;
        loop {
            let word = watch.shared.word();
            let is_last = !matches!(word, Word::At(..));
            match &word {
                // The others speak to rank 0 alone, which says it to all.
                Word::Failed(error) if me.rank == 0 => {
                    let message = format!("{me} cannot go on: {error}");
                    return tell(&others, &Word::End(Verdict::new(message)));
                }
                Word::Failed(_) => return tell(&others, &word),
                _ if is_last || told.is_none_or(|told| told.elapsed() >= PULSE) => {
                    tell(&others, &word);
                    told = Some(Instant::now());
                }
                _ => {}
            }
            let lost = others.iter_mut().find_map(Heard::listen);
            if let Some(verdict) = lost.or_else(|| judge(&watch, &me, &others, patience)) {
                if me.rank == 0 {
                    tell(&others, &Word::End(verdict.clone()));
                }
                // Where rank 0 is gone, one rank of each machine says so.
                let is_told = others.iter().any(|other| other.has_spoken);
                let speaks = me.rank == 0 || !is_told && is_local_first;
                return end(Verdict { speaks, ..verdict });
            }
            if matches!(word, Word::Bye) {
                return;
            }
            std::thread::sleep(TICK);
        }
    }
}

/// Says it to whoever still listens. A stream that takes no more is one whose reader is silent.
fn tell(others: &[Heard], word: &Word) {
    let message = serde_json::to_vec(word).expect("words are JSON");
    for other in others.iter().filter(|other| !other.is_done) {
        let _ = send(&other.stream, &message);
    }
}

/// Whether some rank has been silent, or at one thing, for too long.
fn judge(watch: &Watch, me: &Peer, others: &[Heard], patience: Duration) -> Option<Verdict> {
    let silence = SILENCE.min(patience);
    let active = || others.iter().filter(|other| !other.is_done);
    if let Some(silent) = active().find(|other| other.last.elapsed() > silence) {
        let seconds = silence.as_secs();
        return Some(silent.verdict(&format!("has said nothing for {seconds} s")));
    }
    // Rank 0 alone knows of all.
    if me.rank > 0 || active().next().is_none() {
        return None;
    }
    let (stage, since) = {
        let now = watch.shared.now();
        (now.stage(), now.since.elapsed())
    };
    let mine = (me, &stage, since);
    let all = active().map(|other| (&other.peer, &other.stage, other.stuck_for())).chain([mine]);
    let (waiting, busy): (Vec<_>, Vec<_>) = all.partition(|(_, stage, _)| stage.waits);
    let for_long = |&&(_, _, since): &&(_, _, Duration)| since > patience;
    let waited = waiting.iter().filter(for_long).count();
    // Whoever has been at it longest without waiting is whom the others wait for.
    let longest = busy.iter().filter(for_long).max_by_key(|(_, _, since)| *since);
    let seconds = patience.as_secs();
    let message = match longest {
        Some((peer, stage, since)) if waited > 0 => format!(
            "{peer} has been at this for {} s, and others have waited {seconds} s for it: {stage}",
            since.as_secs()
        ),
        None if busy.is_empty() && waited == waiting.len() => {
            format!("all ranks have waited {seconds} s for one another, at: {stage}")
        }
        _ => return None,
    };
    Some(Verdict::new(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Two ranks wait for each other, as far as is known: the first for 10 s, the second for
    /// `said` when it was last heard of, so long ago.
    fn judged(said: u64, ago: u64) -> Option<String> {
        let before = |seconds| Instant::now() - Duration::from_secs(seconds);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let heard = Heard {
            peer: Peer { rank: 1, host: "there".into() },
            stream: TcpStream::connect(listener.local_addr().unwrap()).unwrap(),
            inbox: Inbox::default(),
            last: before(ago),
            stage: Stage { what: "step 5".into(), waits: true },
            for_ms: 1000 * said,
            is_done: false,
            has_spoken: false,
        };
        let (watch, me) = (Watch::default(), Peer { rank: 0, host: "here".into() });
        watch.enter("step 6");
        let _waiting = watch.wait();
        watch.shared.now().since = before(10);
        let verdict = judge(&watch, &me, &[heard], Duration::from_secs(8));
        verdict.map(|verdict| verdict.message)
    }

    /// What a rank was at says nothing of what it is at: it may have been cut off since.
    #[test]
    fn who_has_gone_quiet_is_judged_by_that_alone() {
        let all = "all ranks have waited 8 s for one another, at: step 6";
        assert_eq!(judged(9, 1).unwrap(), all);
        assert_eq!(judged(7, 1), None);
        assert_eq!(judged(7, 7), None);
        let silent = "rank 1 on there has said nothing for 8 s; it was at: step 5";
        assert_eq!(judged(7, 9).unwrap(), silent);
    }
}
