//! Where the ranks meet: rank 0 listens, and the others learn where.

use super::group::Meeting;
use super::launch::Launch;
use super::store::Store;
use crate::error::{Error, Result};
use std::net::TcpListener;
use std::time::Duration;

/// What rank 0 hands in on rank 0, everywhere.
pub type Tell<'a> = dyn FnMut(Vec<u8>) -> Result<Vec<u8>> + 'a;

/// The meeting point of a launch. The launcher knows a port, or a store where rank 0 leaves one;
/// else `tell`, by whatever the ranks have to talk already, makes it known.
///
/// # Errors
/// [`Error::Distributed`] where rank 0 cannot listen or the store does not answer;
/// [`Error::Option`] where nobody says where to meet.
pub fn meeting(launch: &Launch, timeout: Duration, tell: Option<&mut Tell<'_>>) -> Result<Meeting> {
    let is_first = launch.rank == 0;
    match (&launch.master, tell) {
        (Some((host, port)), _) if launch.agent_store => {
            let failed = |e: std::io::Error| {
                Error::Distributed(format!("torchrun's store at {host}:{port}: {e}"))
            };
            let mut store = Store::connect((host.as_str(), *port), timeout).map_err(failed)?;
            let key = format!("roclip/{}", launch.attempt);
            if is_first {
                let (listener, port) = listen(0)?;
                store.set(&key, format!("{host}:{port}").as_bytes()).map_err(failed)?;
                return Ok(Meeting::Here(listener));
            }
            Ok(Meeting::At(text(store.get(&key).map_err(failed)?)))
        }
        (Some((host, _)), Some(tell)) => by_word(is_first, host, tell),
        (None, Some(tell)) => by_word(is_first, &super::group::host_name(), tell),
        (Some((_, port)), None) if is_first => Ok(Meeting::Here(listen(*port)?.0)),
        (Some((host, port)), None) => Ok(Meeting::At(format!("{host}:{port}"))),
        (None, None) => Err(Error::Option {
            flag: "MASTER_ADDR in the environment".into(),
            got: "nothing".into(),
            expected: "the machine of rank 0, as the ranks are on several".into(),
        }),
    }
}

fn by_word(is_first: bool, host: &str, tell: &mut Tell<'_>) -> Result<Meeting> {
    if !is_first {
        return Ok(Meeting::At(text(tell(Vec::new())?)));
    }
    let (listener, port) = listen(0)?;
    tell(format!("{host}:{port}").into_bytes())?;
    Ok(Meeting::Here(listener))
}

fn listen(port: u16) -> Result<(TcpListener, u16)> {
    let failed =
        |e: std::io::Error| Error::Distributed(format!("cannot listen at port {port}: {e}"));
    // Of both kinds of addresses, where the system has both.
    let listener =
        TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)));
    let listener = listener.map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    Ok((listener, port))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    /// A store as PyTorch's, of one key: answers one client that sets and one that waits.
    fn store(listener: TcpListener) -> String {
        let read = |stream: &mut TcpStream, len: usize| {
            let mut bytes = vec![0; len];
            stream.read_exact(&mut bytes).unwrap();
            bytes
        };
        let text = |stream: &mut TcpStream| {
            let len = u64::from_ne_bytes(read(stream, 8).try_into().unwrap());
            String::from_utf8(read(stream, len as usize)).unwrap()
        };
        let accept = || {
            let mut stream = listener.accept().unwrap().0;
            assert_eq!(read(&mut stream, 5), [&[0][..], &0x3C85_F7CE_u32.to_ne_bytes()].concat());
            stream
        };
        let mut first = accept();
        assert_eq!(read(&mut first, 1), [1]);
        let (key, value) = (text(&mut first), text(&mut first));
        let mut other = accept();
        assert_eq!(read(&mut other, 9), [&[6][..], &1u64.to_ne_bytes()].concat());
        assert_eq!(text(&mut other), key);
        other.write_all(&[0]).unwrap();
        assert_eq!(read(&mut other, 1), [3]);
        assert_eq!(text(&mut other), key);
        other.write_all(&(value.len() as u64).to_ne_bytes()).unwrap();
        other.write_all(value.as_bytes()).unwrap();
        key
    }

    #[test]
    fn torchruns_store_has_the_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = std::thread::spawn(|| store(listener));
        let launch = |rank| Launch {
            rank,
            world_size: 2,
            master: Some(("127.0.0.1".into(), port)),
            agent_store: true,
            attempt: "job/0".into(),
            ..Launch::solo()
        };
        let limit = Duration::from_secs(60);
        let Meeting::Here(listener) = meeting(&launch(0), limit, None).unwrap() else { panic!() };
        let Meeting::At(address) = meeting(&launch(1), limit, None).unwrap() else { panic!() };
        assert_eq!(address, format!("127.0.0.1:{}", listener.local_addr().unwrap().port()));
        assert_eq!(served.join().unwrap(), "roclip/job/0");
    }

    #[test]
    fn where_nobody_says_where_to_meet() {
        let launch = Launch { rank: 1, world_size: 2, ..Launch::solo() };
        let error = meeting(&launch, Duration::ZERO, None).err().unwrap().to_string();
        assert!(error.starts_with("MASTER_ADDR in the environment: nothing"), "{error}");
        let mut tell = |said: Vec<u8>| Ok(if said.is_empty() { b"n1:7".to_vec() } else { said });
        let Meeting::At(address) = meeting(&launch, Duration::ZERO, Some(&mut tell)).unwrap()
        else {
            panic!()
        };
        assert_eq!(address, "n1:7");
    }
}
