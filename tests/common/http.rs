//! A small HTTP/1.1 server that keeps files in memory and misbehaves as it is told.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a client asked for.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// How many requests for the same bytes of the same target came before.
    pub nth: usize,
}

impl Request {
    /// First and last byte asked for.
    pub fn range(&self) -> Option<(u64, u64)> {
        let (first, last) = self.headers.get("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }
}

/// What happens once the bytes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    KeepAlive,
    Close,
    /// Nothing more comes, and the connection stays.
    Stall,
    /// As `Close`, and as `Stall`, but without any answer before.
    Drop,
    Hang,
    /// One byte of the body at a time, with this pause.
    Trickle(Duration),
}

/// What the server answers.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Bytes of the body that are sent; `None` for all.
    pub sent: Option<usize>,
    pub then: Then,
    /// In pieces, without a length.
    pub chunked: bool,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let (headers, body) = (Vec::new(), body.into());
        Self { status, headers, body, sent: None, then: Then::KeepAlive, chunked: false }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.retain(|(present, _)| !present.eq_ignore_ascii_case(name));
        self.headers.push((name.into(), value.to_string()));
        self
    }

    /// A whole file, or the part of it that was asked for.
    pub fn file(request: &Request, file: &[u8]) -> Self {
        let size = file.len() as u64;
        let answer = match request.range() {
            None => Self::new(200, file),
            Some((first, _)) if first >= size => Self::new(416, ""),
            Some((first, last)) => {
                let last = last.min(size - 1);
                let part = &file[first as usize..=last as usize];
                Self::new(206, part).header("Content-Range", format!("bytes {first}-{last}/{size}"))
            }
        };
        answer.header("ETag", "\"one\"").header("Last-Modified", "Mon, 02 Nov 2026 10:00:00 GMT")
    }

    pub fn send(mut self, bytes: usize, then: Then) -> Self {
        (self.sent, self.then) = (Some(bytes), then);
        self
    }

    fn write(&self, stream: &mut TcpStream, is_head: bool) -> std::io::Result<()> {
        if matches!(self.then, Then::Drop | Then::Hang) {
            return Ok(());
        }
        let mut head = format!("HTTP/1.1 {} Because\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let has_length = self.headers.iter().any(|(name, _)| name == "Content-Length");
        if self.chunked {
            head += "Transfer-Encoding: chunked\r\n";
        } else if !has_length {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        stream.write_all((head + "\r\n").as_bytes())?;
        if is_head {
            return Ok(());
        }
        let sent = &self.body[..self.sent.unwrap_or(self.body.len()).min(self.body.len())];
        match self.then {
            Then::Trickle(pause) => {
                for byte in sent {
                    stream.write_all(&[*byte])?;
                    std::thread::sleep(pause);
                }
            }
            _ if self.chunked => {
                for piece in sent.chunks(1000) {
                    write!(stream, "{:x}\r\n", piece.len())?;
                    stream.write_all(piece)?;
                    stream.write_all(b"\r\n")?;
                }
                if self.sent.is_none() {
                    stream.write_all(b"0\r\n\r\n")?;
                }
            }
            _ => stream.write_all(sent)?,
        }
        stream.flush()
    }
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

/// The server; dropping it closes its port.
pub struct Server {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn new(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (log, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let handler: Arc<Handler> = Arc::new(handler);
        let (its_log, its_stop) = (Arc::clone(&log), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if its_stop.load(Ordering::Relaxed) {
                    break;
                }
                let (log, stop) = (Arc::clone(&its_log), Arc::clone(&its_stop));
                let handler = Arc::clone(&handler);
                std::thread::spawn(move || serve(stream, &*handler, &log, &stop));
            }
        });
        Self { address, log, stop, thread: Some(thread) }
    }

    /// Files by path, behaving.
    pub fn files(files: BTreeMap<String, Vec<u8>>) -> Self {
        Self::new(move |request| match files.get(request.path()) {
            Some(file) => Answer::file(request, file),
            None => Answer::new(404, "no such file"),
        })
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// All requests so far.
    pub fn log(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// First bytes of the ranges asked for so far.
    pub fn starts(&self) -> Vec<u64> {
        self.log().iter().filter_map(|request| Some(request.range()?.0)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(stream: TcpStream, handler: &Handler, log: &Mutex<Vec<Request>>, stop: &AtomicBool) {
    // A reader that stays away ends the connection, not the test.
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    // A head and a body are two writes: the second must not wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let Ok(mut out) = stream.try_clone() else { return };
    let mut input = BufReader::new(stream);
    while let Some(mut request) = read_request(&mut input) {
        {
            let mut log = log.lock().unwrap();
            let same = |other: &&Request| {
                (&other.target, other.range()) == (&request.target, request.range())
            };
            request.nth = log.iter().filter(same).count();
            log.push(request.clone());
        }
        let answer = handler(&request);
        if answer.write(&mut out, request.method == "HEAD").is_err() {
            return;
        }
        match answer.then {
            Then::KeepAlive => {}
            Then::Close | Then::Drop | Then::Trickle(_) => return,
            Then::Stall | Then::Hang => {
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(10));
                }
                return;
            }
        }
    }
}

fn read_request(input: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    input.take(1 << 16).read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        input.take(1 << 16).read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    Some(Request { method, target, headers, nth: 0 })
}
