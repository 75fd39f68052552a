//! Messages over a stream: a length, then so many bytes.

use std::io::{self, Read, Write};
use std::net::TcpStream;

/// Longest message: what a checkpoint has of all ranks' places is far below.
const LONGEST: u32 = 1 << 30;

/// Sends a message whole.
pub(super) fn send(mut stream: &TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u32::try_from(message.len()).ok().filter(|len| *len <= LONGEST);
    let len = len.ok_or_else(|| io::Error::other("a message of more than 1 GiB"))?;
    // In one piece: two would wait for an answer in between.
    let mut bytes = Vec::with_capacity(4 + message.len());
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(message);
    stream.write_all(&bytes)
}

/// Waits for a message.
pub(super) fn receive(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let len = length(len)?;
    // Memory is taken as bytes come, not as they are announced.
    let mut message = Vec::new();
    stream.take(len as u64).read_to_end(&mut message)?;
    if message.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(message)
}

fn length(bytes: [u8; 4]) -> io::Result<usize> {
    let len = u32::from_le_bytes(bytes);
    if len > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of more than 1 GiB"));
    }
    Ok(len as usize)
}

/// Messages of a stream that does not wait, as far as they have come.
#[derive(Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
}

impl Inbox {
    /// The next message that is whole; `None` where it is not yet. An error where the other side
    /// has closed the stream.
    pub fn next(&mut self, mut stream: &TcpStream) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(len) = self.bytes.first_chunk() {
                let end = 4 + length(*len)?;
                if self.bytes.len() >= end {
                    let message = self.bytes[4..end].to_vec();
                    self.bytes.drain(..end);
                    return Ok(Some(message));
                }
            }
            let mut some = [0; 4096];
            match stream.read(&mut some) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.bytes.extend_from_slice(&some[..read]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (there, listener.accept().unwrap().0)
    }

    #[test]
    fn messages_arrive_whole_and_in_order() {
        let (there, here) = pair();
        let long = vec![7; 100_000];
        std::thread::scope(|scope| {
            scope.spawn(|| [b"".as_slice(), b"one", &long].map(|m| send(&there, m).unwrap()));
            assert_eq!(receive(&here).unwrap(), b"");
            assert_eq!(receive(&here).unwrap(), b"one");
            assert_eq!(receive(&here).unwrap(), long);
        });
        drop(there);
        assert_eq!(receive(&here).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_inbox_takes_what_there_is() {
        let (mut there, here) = pair();
        here.set_nonblocking(true).unwrap();
        let mut inbox = Inbox::default();
        assert_eq!(inbox.next(&here).unwrap(), None);
        let mut whole = 3u32.to_le_bytes().to_vec();
        whole.extend(b"abc");
        whole.extend(1u32.to_le_bytes());
        for byte in whole {
            assert_eq!(inbox.next(&here).unwrap(), None);
            there.write_all(&[byte]).unwrap();
            there.flush().unwrap();
            // Loopback hands a byte over within microseconds.
            std::thread::sleep(std::time::Duration::from_millis(2));
            if byte == b'c' {
                assert_eq!(inbox.next(&here).unwrap().unwrap(), b"abc");
            }
        }
        drop(there);
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(inbox.next(&here).is_err());
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_before_it_is_read() {
        let (mut there, here) = pair();
        there.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(receive(&here).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
