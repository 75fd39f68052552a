//! The assembler, as the workers share it.

use std::sync::{Condvar, Mutex, PoisonError};

use super::assemble::Assembler;
use super::prepare::Fill;
use super::sequence::Group;

/// The consumer has gone, or has been told everything, or another worker has panicked.
pub(super) struct Gone;

impl<T> From<PoisonError<T>> for Gone {
    fn from(_: PoisonError<T>) -> Self {
        Self
    }
}

/// The assembler under a lock, where workers too far ahead wait.
pub(super) struct Assembly {
    assembler: Mutex<Assembler>,
    /// Told when a group has been gone through.
    moved: Condvar,
    /// Groups that may wait for an earlier one.
    window: u64,
}

/// Ends the other workers where one panics: they would wait for its group, or its rows.
pub(super) struct Alarm<'a>(&'a Assembly);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let assembler = self.0.assembler.lock();
            assembler.unwrap_or_else(PoisonError::into_inner).is_gone = true;
            self.0.moved.notify_all();
        }
    }
}

impl Assembly {
    pub(super) fn new(assembler: Assembler, window: u64) -> Self {
        Self { assembler: Mutex::new(assembler), moved: Condvar::new(), window }
    }

    pub(super) fn alarm(&self) -> Alarm<'_> {
        Alarm(self)
    }

    /// Takes a group whose pairs are prepared, and gives an empty one back. Waits where it is too
    /// far ahead of one that is not.
    pub(super) fn accept(&self, group: Group) -> Result<Group, Gone> {
        let mut assembler = self.assembler.lock()?;
        while !assembler.is_gone && group.number >= assembler.next_group + self.window {
            assembler = self.moved.wait(assembler)?;
        }
        assembler.keep(group);
        self.advance(&mut assembler)?;
        Ok(assembler.spare_groups.pop().unwrap_or_default())
    }

    /// The next row to be written. A row of the batch `written` has been.
    pub(super) fn next_fill(&self, written: Option<u64>) -> Result<Option<Fill>, Gone> {
        let mut assembler = self.assembler.lock()?;
        if let Some(batch) = written {
            assembler.count_row(batch);
            self.advance(&mut assembler)?;
        }
        Ok(assembler.fills.pop_front())
    }

    fn advance(&self, assembler: &mut Assembler) -> Result<(), Gone> {
        let before = assembler.next_group;
        let outcome = assembler.advance();
        if outcome.is_err() || assembler.next_group > before {
            self.moved.notify_all();
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::super::LoaderConfig;
    use super::super::assemble::Ends;
    use super::*;
    use crossbeam_channel::{Receiver, bounded};
    use std::sync::Arc;
    use std::time::Duration;

    fn window_of_one() -> Arc<Assembly> {
        let ends = Ends { deliver: bounded(1).0, spare_batches: bounded(1).1 };
        let config = LoaderConfig::default();
        let assembler = Assembler::new(&config, Default::default(), ends, Arc::default());
        Arc::new(Assembly::new(assembler, 1))
    }

    /// A worker that has prepared the second group; whether it was let go on.
    fn second_group(assembly: &Arc<Assembly>) -> Receiver<bool> {
        let (assembly, (tell, told)) = (Arc::clone(assembly), bounded(1));
        std::thread::spawn(move || {
            let accepted = assembly.accept(Group { number: 1, ..Group::default() });
            tell.send(accepted.is_ok()).unwrap();
        });
        // It would tell at once if it did not wait.
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
        told
    }

    #[test]
    fn a_worker_too_far_ahead_waits_for_the_group_before() {
        let assembly = window_of_one();
        let told = second_group(&assembly);
        assert!(assembly.accept(Group::default()).is_ok());
        assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok(true));
    }

    #[test]
    fn a_worker_that_panics_ends_those_that_wait_for_it() {
        let assembly = window_of_one();
        let told = second_group(&assembly);
        let panics = Arc::clone(&assembly);
        let panicked = std::thread::spawn(move || {
            let _alarm = panics.alarm();
            panic!("as intended");
        });
        assert!(panicked.join().is_err());
        assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok(false));
    }
}
