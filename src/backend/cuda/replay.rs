//! Which recorded work belongs to which key.

/// Recordings kept at a time; the one not used for longest makes room.
const MOST: usize = 32;

/// What is known of a key.
pub(super) enum Known<G> {
    /// It came once: everything it needs is allocated now, so the next time can be recorded.
    Once,
    /// It was recorded.
    Recorded(G),
}

/// Recordings by key, least recently used first.
pub(super) struct Replays<G> {
    entries: Vec<(Vec<u64>, Known<G>)>,
}

impl<G> Default for Replays<G> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<G> Replays<G> {
    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    /// What is known of `key`, which now is the most recently used one.
    pub(super) fn get(&mut self, key: &[u64]) -> Option<&Known<G>> {
        let at = self.entries.iter().position(|(k, _)| k == key)?;
        self.entries[at..].rotate_left(1);
        self.entries.last().map(|(_, known)| known)
    }

    /// Remembers `known` of `key`.
    pub(super) fn put(&mut self, key: &[u64], known: Known<G>) {
        if let Some(at) = self.entries.iter().position(|(k, _)| k == key) {
            self.entries.remove(at);
        } else if self.entries.len() == MOST {
            self.entries.remove(0);
        }
        self.entries.push((key.to_vec(), known));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_makes_room() {
        let mut replays = Replays::default();
        (0..MOST as u64).for_each(|key| replays.put(&[key], Known::Recorded(key)));
        assert!(matches!(replays.get(&[0]), Some(Known::Recorded(0))));
        replays.put(&[99], Known::Once);
        assert!(replays.get(&[1]).is_none(), "1 was not used since it came");
        assert!(matches!(replays.get(&[0]), Some(Known::Recorded(0))));
        replays.put(&[99], Known::Recorded(99));
        assert!(matches!(replays.get(&[99]), Some(Known::Recorded(99))));
        assert_eq!(replays.entries.len(), MOST);
        replays.clear();
        assert!(replays.get(&[0]).is_none());
    }
}
