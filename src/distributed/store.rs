//! The key-value store that torchrun's agent runs at the meeting point: what rank 0 puts there,
//! all others read.
//!
//! Requests of PyTorch's `TCPStore`, a byte each, with numbers in the byte order of the machine
//! and 64-bit lengths before bytes; their numbers are those of its `QueryType`
//! (`torch/csrc/distributed/c10d/TCPStoreBackend.hpp`).

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

const VALIDATE: u8 = 0;
const SET: u8 = 1;
const GET: u8 = 3;
const WAIT: u8 = 6;
/// Tells the store that this is a client of its kind.
const MAGIC: u32 = 0x3C85_F7CE;
/// Longest value that is believed: an address is far shorter.
const LONGEST: u64 = 4096;

/// A connection to the store.
pub(super) struct Store {
    stream: TcpStream,
}

impl Store {
    /// Connects; waits no longer than `limit` for this or any answer.
    pub fn connect(address: impl ToSocketAddrs, limit: Duration) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, limit) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(limit))?;
                    let mut store = Self { stream };
                    let mut hello = vec![VALIDATE];
                    hello.extend(MAGIC.to_ne_bytes());
                    store.stream.write_all(&hello)?;
                    return Ok(store);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Puts a value.
    pub fn set(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        let mut request = vec![SET];
        push(&mut request, key.as_bytes());
        push(&mut request, value);
        self.stream.write_all(&request)
    }

    /// The value of a key, as soon as somebody has put it there.
    pub fn get(&mut self, key: &str) -> io::Result<Vec<u8>> {
        let mut request = vec![WAIT];
        request.extend(1u64.to_ne_bytes());
        push(&mut request, key.as_bytes());
        self.stream.write_all(&request)?;
        let mut answer = [0; 1];
        self.stream.read_exact(&mut answer)?;
        if answer != [0] {
            return Err(io::Error::other("the store has stopped"));
        }
        let mut request = vec![GET];
        push(&mut request, key.as_bytes());
        self.stream.write_all(&request)?;
        let mut len = [0; 8];
        self.stream.read_exact(&mut len)?;
        let len = u64::from_ne_bytes(len);
        if len > LONGEST {
            return Err(io::Error::other(format!("the store's value has {len} bytes")));
        }
        let mut value = vec![0; len as usize];
        self.stream.read_exact(&mut value)?;
        Ok(value)
    }
}

fn push(request: &mut Vec<u8>, bytes: &[u8]) {
    request.extend((bytes.len() as u64).to_ne_bytes());
    request.extend(bytes);
}
