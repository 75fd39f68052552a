//! All ranks of a run, as they talk about it: through rank 0, on the host. What a step exchanges on
//! devices is the [`Communicator`](crate::backend::Communicator)'s.

use super::launch::Launch;
use super::link;
use super::watch::{Peer, Sentry, Verdict, Watch};
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a rank may take to say who it is.
const HELLO: Duration = Duration::from_secs(10);
/// How long a rank that failed waits for others to be heard of, and told.
const FAREWELL: Duration = Duration::from_millis(500);

/// What ranks tell each other of themselves when they meet.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Hello {
    /// Name and version of the program: other versions may talk otherwise.
    program: String,
    attempt: String,
    world_size: usize,
    peer: Peer,
    /// Whether this connection is for the watch.
    is_watch: bool,
}

impl Hello {
    fn of(launch: &Launch, is_watch: bool) -> Self {
        Self {
            program: concat!("roclip ", env!("CARGO_PKG_VERSION")).into(),
            attempt: launch.attempt.clone(),
            world_size: launch.world_size,
            peer: Peer { rank: launch.rank, host: host_name() },
            is_watch,
        }
    }
}

/// The name of this machine.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "an unnamed machine".into() } else { name.into() }
}

/// All ranks of a run. Each calls the same of its functions in the same order.
pub struct Group {
    rank: usize,
    world_size: usize,
    /// Rank 0: the others, from 1 on; another: rank 0.
    links: Vec<TcpStream>,
    watch: Watch,
    sentry: Option<JoinHandle<()>>,
}

/// How ranks find and watch each other.
pub struct GroupOptions {
    /// How long to wait for one another, at the beginning and at any time.
    pub timeout: Duration,
    /// Told, once and on another thread, why all ranks end: another one is gone. It should end the
    /// process, as the thread that trains may wait for ever.
    pub end: Box<dyn FnOnce(Verdict) + Send>,
}

impl Group {
    /// A process of its own.
    pub fn solo() -> Self {
        let (links, watch) = (Vec::new(), Watch::default());
        Self { rank: 0, world_size: 1, links, watch, sentry: None }
    }

    /// Meets the other ranks. Rank 0 waits for them at `listener`; the others know its address.
    ///
    /// # Errors
    /// [`Error::Distributed`] where not all have come in time, or one is of another version.
    pub fn meet(launch: &Launch, at: Meeting, options: GroupOptions) -> Result<Self> {
        let deadline = Instant::now() + options.timeout;
        let pairs = match at {
            Meeting::Here(listener) => accept(launch, &listener, deadline)?,
            Meeting::At(address) => vec![connect(launch, &address, deadline)?],
        };
        let watch = Watch::default();
        let (mut links, mut others) = (Vec::new(), Vec::new());
        for Met { peer, link, watch } in pairs {
            links.push(link);
            others.push((peer, watch));
        }
        let me = Peer { rank: launch.rank, host: host_name() };
        let (patience, end) = (options.timeout, options.end);
        // The first of rank 0's own machine is rank 0.
        let is_local_first = launch.local_rank == 0 || launch.rank == 1;
        let sentry = Sentry { watch: watch.clone(), me, is_local_first, others, patience, end };
        let sentry = Some(sentry.start().map_err(|e| Error::Distributed(e.to_string()))?);
        let Launch { rank, world_size, .. } = *launch;
        Ok(Self { rank, world_size, links, watch, sentry })
    }

    /// This process.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of processes.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Whether this is rank 0, which speaks for all.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Where this rank tells what it does.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// What all ranks say, in their order, on rank 0; nothing elsewhere.
    ///
    /// # Errors
    /// [`Error::Distributed`] where another rank is gone.
    pub fn gather(&self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        if !self.is_first() {
            link::send(&self.links[0], &mine).map_err(|e| self.lost(1, &e))?;
            return Ok(Vec::new());
        }
        let _waiting = self.watch.wait();
        let mut all = vec![mine];
        for (n, link) in self.links.iter().enumerate() {
            all.push(link::receive(link).map_err(|e| self.lost(n + 1, &e))?);
        }
        Ok(all)
    }

    /// What rank 0 says; what others hand in is ignored.
    ///
    /// # Errors
    /// [`Error::Distributed`] where another rank is gone.
    pub fn broadcast(&self, said: Vec<u8>) -> Result<Vec<u8>> {
        if !self.is_first() {
            let _waiting = self.watch.wait();
            return link::receive(&self.links[0]).map_err(|e| self.lost(0, &e));
        }
        for (n, link) in self.links.iter().enumerate() {
            link::send(link, &said).map_err(|e| self.lost(n + 1, &e))?;
        }
        Ok(said)
    }

    /// What rank 0 has, everywhere; what others hand in is ignored.
    ///
    /// # Errors
    /// [`Error::Distributed`] where another rank is gone.
    pub fn first_has<T: Serialize + DeserializeOwned>(&self, mine: T) -> Result<T> {
        if self.world_size == 1 {
            return Ok(mine);
        }
        let said = serde_json::to_vec(&mine).expect("what ranks say is JSON");
        serde_json::from_slice(&self.broadcast(said)?)
            .map_err(|e| Error::Distributed(format!("rank 0 talks nonsense: {e}")))
    }

    /// How many there are, for the log; nothing of one.
    pub fn in_words(&self) -> String {
        match self.world_size {
            1 => String::new(),
            ranks => format!(", {ranks} ranks"),
        }
    }

    fn lost(&self, rank: usize, error: &std::io::Error) -> Error {
        Error::Distributed(format!("rank {rank} does not answer: {error}"))
    }

    /// Ends all ranks, since this one cannot go on. Returns when that is on its way, with what is
    /// left to tell: rank 0 tells what another met.
    pub fn fail(mut self, error: Error) -> Error {
        // It may be no more than what this rank sees of another's end, which is then told.
        std::thread::sleep(FAREWELL);
        self.watch.fail(error.to_string());
        self.join();
        if self.is_first() {
            return error;
        }
        std::thread::sleep(FAREWELL);
        Error::Told
    }

    fn join(&mut self) {
        self.watch.leave();
        if let Some(sentry) = self.sentry.take() {
            // Its panic stands on standard error.
            let _ = sentry.join();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.join();
    }
}

/// Where ranks meet.
pub enum Meeting {
    /// Rank 0 listens.
    Here(TcpListener),
    /// Where it does, for the others: `host:port`.
    At(String),
}

/// The two connections to another rank.
struct Met {
    peer: Peer,
    link: TcpStream,
    watch: TcpStream,
}

fn refuse(reason: String) -> Error {
    Error::Distributed(reason)
}

/// Rank 0 waits for all others.
fn accept(launch: &Launch, listener: &TcpListener, deadline: Instant) -> Result<Vec<Met>> {
    let count = launch.world_size - 1;
    let mut come: Vec<[Option<TcpStream>; 2]> = (0..count).map(|_| [None, None]).collect();
    let mut peers: Vec<Option<Peer>> = vec![None; count];
    listener.set_nonblocking(true).map_err(|e| refuse(format!("cannot listen: {e}")))?;
    while come.iter().flatten().any(Option::is_none) {
        let missing = || {
            let absent = |n: &usize| come[*n].iter().any(Option::is_none);
            let ranks: Vec<_> =
                (0..count).filter(absent).map(|n| (n + 1).to_string()).take(8).collect();
            let (ranks, size) = (ranks.join(", "), launch.world_size);
            refuse(format!("not all {size} ranks have come; these have not: {ranks}"))
        };
        if Instant::now() > deadline {
            return Err(missing());
        }
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        // Whoever else knocks at the port is not answered.
        let Some(hello) = hear(&stream) else { continue };
        let mine = Hello::of(launch, hello.is_watch);
        let same = |h: &Hello| (h.program.clone(), h.attempt.clone(), h.world_size);
        let rank = hello.peer.rank;
        if same(&hello) != same(&mine) || !(1..=count).contains(&rank) {
            let reason = format!(
                "{} is of {} with {} ranks, rank 0 of {} with {}",
                hello.peer, hello.program, hello.world_size, mine.program, mine.world_size
            );
            let _ = link::send(&stream, reason.as_bytes());
            // One that is left over from an earlier start will end by itself.
            if hello.attempt != mine.attempt {
                continue;
            }
            return Err(refuse(reason));
        }
        link::send(&stream, b"").map_err(|e| refuse(format!("{}: {e}", hello.peer)))?;
        come[rank - 1][usize::from(hello.is_watch)] = Some(stream);
        peers[rank - 1] = Some(hello.peer);
    }
    let both = come
        .into_iter()
        .zip(peers)
        .filter_map(|([link, watch], peer)| Some(Met { peer: peer?, link: link?, watch: watch? }));
    Ok(both.collect())
}

fn hear(stream: &TcpStream) -> Option<Hello> {
    set_up(stream, Some(HELLO)).ok()?;
    let hello = serde_json::from_slice(&link::receive(stream).ok()?).ok()?;
    set_up(stream, None).ok()?;
    Some(hello)
}

fn set_up(stream: &TcpStream, limit: Option<Duration>) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(limit)
}

/// Another rank goes to rank 0, which may not be there yet.
fn connect(launch: &Launch, address: &str, deadline: Instant) -> Result<Met> {
    let knock = |is_watch| loop {
        match TcpStream::connect(address) {
            Ok(stream) => return greet(launch, stream, is_watch, deadline),
            Err(error) if Instant::now() > deadline => {
                return Err(refuse(format!("rank 0 cannot be met at {address}: {error}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let (link, watch) = (knock(false)?, knock(true)?);
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    Ok(Met { peer: Peer { rank: 0, host: host.into() }, link, watch })
}

fn greet(
    launch: &Launch,
    stream: TcpStream,
    is_watch: bool,
    deadline: Instant,
) -> Result<TcpStream> {
    let wait = deadline.saturating_duration_since(Instant::now()).max(HELLO);
    let hello = serde_json::to_vec(&Hello::of(launch, is_watch)).expect("a hello is JSON");
    let talk = || {
        set_up(&stream, Some(wait))?;
        link::send(&stream, &hello)?;
        let answer = link::receive(&stream)?;
        set_up(&stream, None)?;
        std::io::Result::Ok(answer)
    };
    let answer = talk().map_err(|e| refuse(format!("rank 0 does not answer: {e}")))?;
    if answer.is_empty() {
        return Ok(stream);
    }
    Err(refuse(String::from_utf8_lossy(&answer).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    fn launch(rank: usize, world_size: usize) -> Launch {
        Launch { rank, world_size, ..Launch::solo() }
    }

    type Told = Receiver<Verdict>;

    /// The ranks of a world, and what each is told of an end.
    fn world(size: usize, timeout: Duration) -> Vec<(Group, Told)> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut listener = Some(listener);
        let ranks = (0..size).map(|rank| {
            let first = listener.take().map(Meeting::Here);
            let at = first.unwrap_or_else(|| Meeting::At(address.clone()));
            std::thread::spawn(move || {
                let (tell, told) = channel();
                let end = Box::new(move |verdict| tell.send(verdict).unwrap());
                let options = GroupOptions { timeout, end };
                (Group::meet(&launch(rank, size), at, options).unwrap(), told)
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn ranks_talk_through_the_first() {
        let ranks: Vec<_> = world(4, LONG)
            .into_iter()
            .map(|(group, told)| {
                std::thread::spawn(move || {
                    for turn in 0..100u8 {
                        let rank = group.rank() as u8;
                        let all = group.gather(vec![rank, turn]).unwrap();
                        let sum = all.iter().map(|said| said[0]).sum();
                        if group.is_first() {
                            let expected: Vec<_> = (0..4).map(|rank| vec![rank, turn]).collect();
                            assert_eq!(all, expected);
                        }
                        assert_eq!(group.broadcast(vec![sum, turn]).unwrap(), [6, turn]);
                    }
                    drop(group);
                    // A rank that is done is not missed.
                    assert!(told.try_recv().is_err());
                })
            })
            .collect();
        ranks.into_iter().for_each(|rank| rank.join().unwrap());
    }

    /// As the system closes the connections of a process that was killed.
    fn kill(group: Group) {
        let Group { links, .. } = &group;
        links.iter().for_each(|link| link.shutdown(std::net::Shutdown::Both).unwrap());
        std::mem::forget(group);
    }

    #[test]
    fn an_error_of_one_rank_reaches_all() {
        let mut ranks = world(3, LONG);
        let (group, _told) = ranks.remove(1);
        assert!(matches!(group.fail(Error::Device("no memory".into())), Error::Told));
        for (_group, told) in ranks {
            let Verdict { message, .. } = told.recv_timeout(LONG).unwrap();
            assert!(message.starts_with("rank 1 on "), "{message}");
            assert!(message.ends_with("cannot go on: device: no memory"), "{message}");
        }
    }

    #[test]
    fn who_does_not_get_on_is_named() {
        let ranks = world(3, Duration::from_secs(2));
        ranks[2].0.watch().enter("reading 7.tar");
        let ranks = ranks.into_iter().map(|(group, told)| {
            std::thread::spawn(move || {
                let waiting = (group.rank() < 2).then(|| group.watch().wait());
                let Verdict { message, speaks } = told.recv_timeout(LONG).unwrap();
                assert_eq!(speaks, group.rank() == 0);
                assert!(message.starts_with("rank 2 on "), "{message}");
                assert!(message.ends_with("reading 7.tar"), "{message}");
                drop(waiting);
                kill(group);
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().for_each(|rank| rank.join().unwrap());
    }

    #[test]
    fn other_programs_and_strangers_are_not_let_in() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let options = |timeout| GroupOptions { timeout, end: Box::new(|_| {}) };
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                let at = Meeting::Here(listener);
                Group::meet(&launch(0, 2), at, options(LONG)).map(drop)
            });
            let stranger = TcpStream::connect(&address).unwrap();
            link::send(&stranger, b"GET / HTTP/1.1").unwrap();
            // Left over from an attempt before.
            let old = Launch { attempt: "1".into(), ..launch(1, 2) };
            let refused = Group::meet(&old, Meeting::At(address.clone()), options(LONG));
            assert!(refused.err().unwrap().to_string().contains("rank 1 on "));
            let other = Group::meet(&launch(1, 3), Meeting::At(address.clone()), options(LONG));
            let reason = other.err().unwrap().to_string();
            assert!(reason.contains("with 3 ranks, rank 0 of roclip"), "{reason}");
            assert_eq!(first.join().unwrap().unwrap_err().to_string(), reason);
        });
    }

    #[test]
    fn who_has_not_come_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let options = GroupOptions { timeout: Duration::from_millis(50), end: Box::new(|_| {}) };
        let error = Group::meet(&launch(0, 3), Meeting::Here(listener), options).err().unwrap();
        assert_eq!(
            error.to_string(),
            "distributed: not all 3 ranks have come; these have not: 1, 2"
        );
    }
}
