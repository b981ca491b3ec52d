//! Who is connected, and who gives way when there is no room: of the one that has the most connections, the one that has
//! been waited for the longest. Streams of events stay; there are few of them.
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{task::AbortHandle, time::Instant};

/// One that has been served within this time does not give way.
const GRACE: Duration = Duration::from_millis(200);

/// Whose connections are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    /// An address; of IPv6 the network, in which one host may have any number.
    Address(IpAddr),
    /// The user at the other end of a socket file.
    User(u32),
}

impl Peer {
    /// The peer at an address.
    pub(super) fn at(address: IpAddr) -> Peer {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) & !u128::from(u64::MAX);
                Peer::Address(IpAddr::V6(network.into()))
            }
            address => Peer::Address(address),
        }
    }
}

/// What is seen of one connection.
#[derive(Debug)]
pub(super) struct Connection {
    begun: Instant,
    /// When it last took something of an answer, in milliseconds after it began.
    taken_ms: AtomicU64,
    is_stream: AtomicBool,
}

impl Default for Connection {
    fn default() -> Connection {
        Connection { begun: Instant::now(), taken_ms: AtomicU64::new(0), is_stream: AtomicBool::new(false) }
    }
}

impl Connection {
    /// It has taken something of an answer.
    pub(super) fn has_taken(&self) {
        let milliseconds = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.taken_ms.store(milliseconds, Ordering::Relaxed);
    }

    /// It listens to events.
    pub(super) fn is_stream(&self) {
        self.is_stream.store(true, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.begun + Duration::from_millis(self.taken_ms.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Place {
    peer: Peer,
    seen: Arc<Connection>,
    task: Option<AbortHandle>,
}

#[derive(Debug, Default)]
struct Places {
    taken: HashMap<u64, Place>,
    next: u64,
}

/// All connections.
#[derive(Debug)]
pub(super) struct Peers {
    places: Mutex<Places>,
    most: usize,
    most_of_one: usize,
}

/// A connection's place; dropped, it is free.
#[derive(Debug)]
pub(super) struct Taken {
    peers: Arc<Peers>,
    number: u64,
    /// What is seen of it.
    pub(super) seen: Arc<Connection>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.peers.lock().taken.remove(&self.number);
    }
}

impl Peers {
    pub(super) fn new(most: usize, most_of_one: usize) -> Arc<Peers> {
        Arc::new(Peers { places: Mutex::default(), most, most_of_one })
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection, and whether another one had to give way; `None` where none would.
    pub(super) fn enter(self: &Arc<Peers>, peer: Peer) -> Option<(Taken, bool)> {
        let mut places = self.lock();
        let of_one = places.taken.values().filter(|place| place.peer == peer).count();
        let who = if of_one >= self.most_of_one {
            Some(peer)
        } else if places.taken.len() >= self.most {
            Some(places.most_present()?)
        } else {
            None
        };
        if let Some(who) = who {
            let number = places.longest_waited_for(who)?;
            if let Some(task) = places.taken.remove(&number).and_then(|place| place.task) {
                task.abort();
            }
        }
        let number = places.next;
        places.next += 1;
        let seen: Arc<Connection> = Arc::default();
        places.taken.insert(number, Place { peer, seen: Arc::clone(&seen), task: None });
        Some((Taken { peers: Arc::clone(self), number, seen }, who.is_some()))
    }

    /// What serves a connection, and ends it when it is to give way.
    pub(super) fn serves(&self, number: u64, task: AbortHandle) {
        if let Some(place) = self.lock().taken.get_mut(&number) {
            place.task = Some(task);
        }
    }
}

impl Taken {
    /// What it is called.
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

impl Places {
    fn most_present(&self) -> Option<Peer> {
        let mut counts: HashMap<Peer, usize> = HashMap::new();
        for place in self.taken.values() {
            *counts.entry(place.peer).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(peer, _)| peer)
    }

    fn longest_waited_for(&self, peer: Peer) -> Option<u64> {
        let idle = self.taken.iter().filter(|(_, place)| {
            place.peer == peer
                && !place.seen.is_stream.load(Ordering::Relaxed)
                && place.seen.last().elapsed() > GRACE
        });
        idle.min_by_key(|(_, place)| place.seen.last()).map(|(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Peer = Peer::User(1);
    const OTHER: Peer = Peer::User(2);

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    #[test]
    fn the_one_that_is_waited_for_the_longest_gives_way() {
        run(async {
            let peers = Peers::new(8, 3);
            let held: Vec<Taken> = (0..3).map(|_| peers.enter(ONE).unwrap().0).collect();
            assert!(peers.enter(ONE).is_none(), "all have just come");
            tokio::time::sleep(GRACE * 2).await;
            held[0].seen.has_taken();
            held[1].seen.is_stream();
            let task = tokio::spawn(std::future::pending::<()>());
            peers.serves(held[2].number(), task.abort_handle());
            let (_new, made_room) = peers.enter(ONE).unwrap();
            assert!(made_room && task.await.unwrap_err().is_cancelled());
            assert!(peers.enter(ONE).is_none(), "one was served just now, one is a stream, one is new");
            assert!(!peers.enter(OTHER).unwrap().1, "others have room");
        });
    }

    #[test]
    fn where_all_is_taken_the_one_with_the_most_gives_way() {
        run(async {
            let peers = Peers::new(4, 4);
            let many: Vec<Taken> = (0..3).map(|_| peers.enter(ONE).unwrap().0).collect();
            let few = peers.enter(OTHER).unwrap().0;
            tokio::time::sleep(GRACE * 2).await;
            assert!(peers.enter(OTHER).unwrap().1);
            let left = peers.lock().taken.keys().copied().collect::<Vec<_>>();
            assert!(left.contains(&few.number()) && left.len() == 3, "{left:?}");
            drop((many, few));
            assert!(peers.lock().taken.is_empty());
        });
    }

    #[test]
    fn addresses_of_one_host_are_one_peer() {
        let at = |text: &str| Peer::at(text.parse().unwrap());
        assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_ne!(at("10.0.0.1"), at("10.0.0.2"));
    }
}
