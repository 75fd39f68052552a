//! The ledger of what was not trained on.

use super::run::{Counted, Run};
use super::text::{count, counted, shown};
use crate::data::ledger::{Entry, Reason};
use maud::{Markup, html};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most shards that are listed.
const SHARDS: usize = 40;
/// Most refused steps that are listed, and pairs of each.
const REFUSED: usize = 20;

/// Lines of a ledger by epoch, by reason and by shard; a few bytes for each shard that has any.
#[derive(Clone, Debug, Default)]
pub(super) struct Skips {
    /// Pairs by epoch.
    pub pairs: BTreeMap<u64, u64>,
    /// Pairs and damaged places of the last epoch that is on it, by reason.
    pub reasons: BTreeMap<Reason, (u64, u64)>,
    /// The same by shard.
    pub shards: BTreeMap<Arc<str>, BTreeMap<Reason, u64>>,
    last: u64,
}

impl Skips {
    /// Takes a line in.
    pub fn add(&mut self, entry: &Entry) {
        if entry.epoch != self.last {
            self.reasons.clear();
            self.shards.clear();
            self.last = entry.epoch;
        }
        let (pairs, places) = self.reasons.entry(entry.reason).or_default();
        if entry.is_pair() {
            *self.pairs.entry(entry.epoch).or_default() += 1;
            *pairs += 1;
        } else {
            *places += 1;
        }
        let shard = self.shards.entry(Arc::clone(&entry.shard)).or_default();
        *shard.entry(entry.reason).or_default() += 1;
    }
}

/// Section 6.
pub(super) fn section(run: &Run) -> Markup {
    html! {
        section #ledger {
            h2 { "What was not trained on" }
            @if run.told.counted.is_empty() {
                p.none { "No epoch is complete yet, so nothing is added up." }
            } @else {
                (epochs(run))
            }
            @if run.skips.reasons.is_empty() {
                p { "No pair was skipped and no shard is damaged." }
            } @else {
                (reasons(&run.skips))
                (shards(&run.skips))
            }
            @if !run.refused.is_empty() { (refused(run)) }
        }
    }
}

/// Every epoch's sum, and whether it closes: by the log's own columns, and against the ledger.
fn epochs(run: &Run) -> Markup {
    let on_ledger = |epoch: &u64| run.skips.pairs.get(epoch).copied().unwrap_or(0);
    let judged = |epoch: &u64, counted: &Counted| match counted.rest() {
        _ if on_ledger(epoch) != counted.skipped => {
            format!("differs: {} on the ledger", count(on_ledger(epoch)))
        }
        0 => "closes".to_owned(),
        rest if rest > 0 => format!("{rest} missing"),
        rest => format!("{} too many", -rest),
    };
    let few = run.told.counted.len() <= 12;
    let all_close = run.told.counted.iter().all(|(epoch, c)| judged(epoch, c) == "closes");
    html! {
        p {
            @if all_close {
                "Every pair that was met is accounted for: in each epoch the columns add up, and \
                 the ledger has as many lines as pairs were skipped."
            } @else {
                "Not every sum closes; the last column says where."
            }
        }
        details open=[few.then_some("")] {
            summary { "Pairs by epoch" }
            div.scroll tabindex="0" {
                table {
                    thead { tr {
                        th scope="col" { "Epoch" } th.n scope="col" { "seen" }
                        th.n scope="col" { "trained on" } th.n scope="col" { "skipped" }
                        th.n scope="col" { "left over" } th scope="col" { "sum" }
                    } }
                    tbody { @for (epoch, c) in &run.told.counted { tr {
                        th scope="row" { (epoch + 1) } td.n { (count(c.seen)) }
                        td.n { (count(c.delivered)) } td.n { (count(c.skipped)) }
                        td.n { (count(c.left_over)) } td { (judged(epoch, c)) }
                    } } }
                }
            }
        }
    }
}

fn reasons(skips: &Skips) -> Markup {
    let total = |of: fn(&(u64, u64)) -> u64| count(skips.reasons.values().map(of).sum::<u64>());
    html! {
        h3 { "By reason, in epoch " (skips.last + 1) }
        table {
            thead { tr {
                th scope="col" { "Reason" } th.n scope="col" { "pairs" }
                th.n scope="col" { "damaged places of shards" }
            } }
            tbody { @for (reason, (pairs, places)) in &skips.reasons { tr {
                th scope="row" { (reason.name()) }
                td.n { (count(*pairs)) } td.n { (count(*places)) }
            } } }
            tfoot { tr {
                th scope="row" { "all" } td.n { (total(|t| t.0)) } td.n { (total(|t| t.1)) }
            } }
        }
    }
}

fn shards(skips: &Skips) -> Markup {
    let mut worst: Vec<_> = skips.shards.iter().collect();
    worst.sort_by_key(|(_, reasons)| std::cmp::Reverse(reasons.values().sum::<u64>()));
    let told = |reasons: &BTreeMap<Reason, u64>| {
        let parts: Vec<_> =
            reasons.iter().map(|(r, n)| format!("{} {}", r.name(), count(*n))).collect();
        parts.join(", ")
    };
    html! {
        details {
            summary { "By shard: " (counted(worst.len() as u64, "shard")) }
            div.scroll tabindex="0" {
                table {
                    thead { tr {
                        th scope="col" { "Shard" } th scope="col" { "lines of the ledger" }
                    } }
                    tbody { @for (shard, reasons) in worst.iter().take(SHARDS) { tr {
                        th scope="row" { code { (shown(shard)) } } td { (told(reasons)) }
                    } } }
                }
            }
            @if worst.len() > SHARDS {
                p.note { "The " (SHARDS) " with most are listed; skips.jsonl has all." }
            }
        }
    }
}

fn refused(run: &Run) -> Markup {
    html! {
        h3 { "Refused steps" }
        p {
            (counted(run.refused.len() as u64, "step")) " had a loss or a gradient that is not \
             finite; nothing was changed by them. These pairs may be to blame."
        }
        ul { @for step in run.refused.iter().take(REFUSED) { li {
            "After step " (count(step.step)) ": " (shown(&step.what)) ". "
            @for name in step.samples.iter().take(REFUSED) { code { (shown(name)) } " " }
            @if step.samples.len() > REFUSED { "and " (step.samples.len() - REFUSED) " more" }
        } } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::ledger::Fault;
    use crate::flow::SampleId;

    #[test]
    fn lines_are_counted_by_epoch_and_the_last_one_in_full() {
        let id = |shard: &str| SampleId {
            shard: shard.into(),
            shard_index: 0,
            index: 0,
            key: "k".into(),
        };
        let broken = |epoch, shard| {
            Entry::pair((epoch, 0), &id(shard), 0, Fault::new(Reason::BrokenImage, ""))
        };
        let mut skips = Skips::default();
        let damage = Fault::new(Reason::Truncated, "");
        let entries = [broken(0, "a"), broken(0, "b"), broken(2, "<b>"), broken(2, "a")];
        entries.iter().for_each(|entry| skips.add(entry));
        skips.add(&Entry::shard((2, 9), "a".into(), 0, 7, damage));
        assert_eq!(skips.pairs, BTreeMap::from([(0, 2), (2, 2)]));
        assert_eq!(skips.reasons[&Reason::BrokenImage], (2, 0));
        assert_eq!(skips.reasons[&Reason::Truncated], (0, 1));
        assert_eq!(skips.shards["a"].values().sum::<u64>(), 2);
        let page = shards(&skips).into_string();
        assert!(
            page.contains("&lt;b&gt;")
                && page.find("<code>a").unwrap() < page.find("&lt;b").unwrap()
        );
    }

    #[test]
    fn a_sum_that_does_not_close_is_told() {
        let mut run = Run::default();
        let counted = Counted { seen: 10, delivered: 8, skipped: 1, left_over: 1 };
        run.told.counted.insert(0, counted);
        assert!(section(&run).into_string().contains("differs: 0 on the ledger"));
        run.skips.pairs.insert(0, 1);
        assert!(section(&run).into_string().contains("Every pair that was met is accounted for"));
        run.told.counted.insert(1, Counted { seen: 20, delivered: 8, ..Counted::default() });
        assert!(section(&run).into_string().contains("12 missing"));
        run.told.counted.insert(1, Counted { seen: 2, delivered: 8, ..Counted::default() });
        assert!(section(&run).into_string().contains("6 too many"));
    }
}
