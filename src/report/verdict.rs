//! What all of it amounts to, in a sentence. Words are as strong as the evidence: a ranking always
//! has a first pair, so a list of suspects alone accuses nobody.

use super::curves::is_attack;
use super::detection::Detection;
use super::run::Run;
use super::text::{count, counted, percent, shown};
use crate::error::quoted;
use maud::{Markup, html};

/// An attack that succeeds in fewer pictures has failed.
const FAILED: f64 = 0.05;
/// One that succeeds in more works.
const WORKS: f64 = 0.5;

/// Success of an attack at the last evaluation, as shares.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Success {
    pub name: String,
    pub ours: f64,
    /// What that model reads into the attacker's class without a trigger, where it was measured.
    pub untouched: Option<f64>,
    pub reference: Option<f64>,
}

impl Success {
    /// The part that the attack has achieved.
    fn excess(&self) -> f64 {
        self.ours - self.untouched.unwrap_or(0.0)
    }
}

/// What a verdict is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Facts {
    /// What detection says, where it ran.
    pub detected: Option<Detected>,
    /// Attacks whose success was measured.
    pub attacks: Vec<Success>,
}

/// What detection says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Detected {
    pub pairs: u64,
    pub quarantined: u64,
    /// Clusters of near-identical pictures whose captions disagree.
    pub clusters: u64,
    /// Pairs against which there is evidence.
    pub accused: u64,
    /// The strongest case in words.
    pub strongest: Option<String>,
    /// Pairs listed as poisoned, those of them looked at, and those in quarantine.
    pub truth: Option<(u64, u64, u64)>,
}

/// How much was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nobody looked.
    Unknown,
    /// Somebody looked, and nothing stands out.
    Nothing,
    /// Something stands out.
    Signs,
    /// A truth says so.
    Poisoned,
}

/// A verdict.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    pub finding: Finding,
    pub title: &'static str,
    pub sentence: String,
    /// Whether the defence worked, as far as that was measured.
    pub defence: String,
}

impl Detected {
    /// From what detection left; `strongest` describes the strongest case.
    pub fn new(found: &Detection, strongest: Option<String>) -> Self {
        let summary = &found.summary;
        let odd = found.pictures.iter().filter(|cluster| cluster.is_odd());
        let truth = found.truth.as_ref().map(|t| (t.listed, t.present, t.caught));
        Self {
            pairs: summary.pairs,
            quarantined: summary.quarantined,
            clusters: odd.count() as u64,
            accused: found.accused(),
            strongest,
            truth,
        }
    }

    fn finding(&self) -> Finding {
        match self.truth {
            Some((_, present, _)) if present > 0 => Finding::Poisoned,
            _ if self.accused > 0 => Finding::Signs,
            _ => Finding::Nothing,
        }
    }

    fn sentence(&self) -> String {
        let Self { pairs, quarantined, clusters, .. } = self;
        let suspected = counted(*quarantined, "suspected pair");
        let share = percent(*quarantined as f64 / (*pairs).max(1) as f64);
        let clusters = counted(*clusters, "cluster");
        let found = format!("{clusters}, {suspected} of {} ({share})", count(*pairs));
        match self.finding() {
            Finding::Poisoned => {
                let (listed, present, caught) = self.truth.unwrap_or_default();
                let recall = percent(caught as f64 / present.max(1) as f64);
                let precision = percent(caught as f64 / (*quarantined).max(1) as f64);
                format!(
                    "{} of the {} listed as poisoned are in the data; {} of them ({recall}) are \
                     among the {suspected}, of which they make up {precision}.",
                    count(present),
                    counted(listed, "pair"),
                    count(caught),
                )
            }
            Finding::Signs => match &self.strongest {
                Some(strongest) => format!("{found}; strongest: {strongest}."),
                None => format!("{found}."),
            },
            _ => {
                let none = format!(
                    "Against none of {} is there evidence. This is no proof: a few well-made \
                     poisoned pairs in a million need not stand out.",
                    counted(*pairs, "pair"),
                );
                match quarantined {
                    0 => none,
                    _ => format!(
                        "{none} The {suspected} are the first of a ranking, which always has a \
                         first; that they are named accuses nobody."
                    ),
                }
            }
        }
    }
}

impl Facts {
    /// Attacks that the last evaluations of both runs measured.
    pub fn attacks(run: &Run, reference: Option<&Run>) -> Vec<Success> {
        let last = |run: &Run, name: &str| run.evaluations.last().map(|e| e.get(name));
        let attack = |name: &str| {
            let ours = last(run, name).filter(|share| share.is_finite())?;
            let reference = reference.and_then(|run| last(run, name)).filter(|s| s.is_finite());
            let untouched = name.strip_prefix("asr-").and_then(|attack| {
                last(run, &format!("asr_without_trigger-{attack}")).filter(|s| s.is_finite())
            });
            Some(Success { name: shown(name), ours, untouched, reference })
        };
        run.figures().into_iter().filter(|name| is_attack(name)).filter_map(attack).collect()
    }

    /// The verdict.
    pub fn verdict(&self) -> Verdict {
        let finding = self.detected.as_ref().map_or(Finding::Unknown, Detected::finding);
        let title = match finding {
            Finding::Unknown => "The data was not examined",
            Finding::Nothing => "No sign of poisoning was found",
            Finding::Signs => "Something in this data stands out",
            Finding::Poisoned => "This data is poisoned",
        };
        let sentence = match &self.detected {
            Some(detected) => detected.sentence(),
            None => {
                "There is no detection for this run, which roclip-detect makes, so nothing can \
                     be said about its data."
                    .to_owned()
            }
        };
        Verdict { finding, title, sentence, defence: self.defence() }
    }

    /// The attack that succeeds most decides.
    fn defence(&self) -> String {
        let worst = self.attacks.iter().max_by(|a, b| a.excess().total_cmp(&b.excess()));
        let Some(worst @ Success { name, ours, untouched, reference }) = worst else {
            return "Whether the model obeys an attacker was not measured.".into();
        };
        let mut success = percent(*ours);
        if let Some(untouched) = untouched {
            success += &format!(" (without the trigger: {})", percent(*untouched));
        }
        let told = match self.attacks.len() {
            1 => format!("the attack measured, {name}, succeeds in {success}"),
            n => format!("of {n} attacks measured the worst, {name}, succeeds in {success}"),
        };
        let word = match worst.excess() {
            share if share >= WORKS => "The model obeys the attacker",
            share if share >= FAILED => "The attack still works in part",
            _ => match reference {
                Some(theirs) if *theirs >= WORKS => "The defence held",
                Some(theirs) if *theirs >= FAILED => "The attack failed",
                _ => "The attack failed, though perhaps not because of the defence",
            },
        };
        let reference = match reference {
            Some(theirs) => format!("; in the reference run in {}", percent(*theirs)),
            None => {
                "; without a reference run nobody knows what it would have done undefended".into()
            }
        };
        format!("{word}: {told}{reference}.")
    }
}

/// Section 1.
pub(super) fn section(
    verdict: &Verdict,
    facts: &Facts,
    found: Option<&Detection>,
    run: &Run,
) -> Markup {
    let folder = run.folder.display().to_string();
    let calm = matches!(verdict.finding, Finding::Nothing | Finding::Unknown);
    html! {
        section #verdict {
            p.verdict-title.calm[calm] { (verdict.title) }
            p.lead { (verdict.sentence) }
            p.lead { (verdict.defence) }
            @if let Some(detected) = &facts.detected { (figures(detected)) }
            h2 { "What to do next" }
            @if let Some(found) = found {
                p {
                    "Look at the suspects below first. To train again without them, with the \
                     settings of " a href="#reproduce" { "run.toml" } ":"
                }
                pre { code { "roclip-train --config run.toml --exclude "
                    (shell(&found.quarantine().display().to_string())) } }
                p { "To keep a cleaned copy of the shards:" }
                pre { code { "roclip-shards filter "
                    (shell(run.setting("shards").unwrap_or("SHARDS"))) " CLEAN --exclude "
                    (shell(&found.quarantine().display().to_string())) } }
            } @else {
                p { "Have every pair looked at; then make this report again:" }
                pre { code { "roclip-detect " (shell(&folder)) } }
            }
        }
    }
}

/// A word of a command that a reader copies, with what hides in it shown.
fn shell(word: &str) -> String {
    shown(&quoted(word))
}

fn figures(detected: &Detected) -> Markup {
    let cell = |value: String, what: &str| html! { div { dt { (what) } dd { (value) } } };
    html! {
        dl.figures {
            (cell(count(detected.pairs), "pairs looked at"))
            (cell(count(detected.quarantined), "proposed for quarantine"))
            (cell(count(detected.clusters), "clusters of pictures, nearly one, whose \
                captions disagree"))
            (cell(count(detected.accused), "pairs against which there is evidence: a mark in \
                common with other suspects, or near copies with captions that contradict theirs"))
            @if let Some((_, present, caught)) = detected.truth {
                (cell(format!("{} / {}", count(caught), count(present)), "poisoned pairs in \
                    quarantine, of those in the data"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detected() -> Detected {
        Detected { pairs: 3_318_333, quarantined: 341, ..Detected::default() }
    }

    fn told(detected: Option<Detected>, attacks: &[(f64, Option<f64>)]) -> Verdict {
        let success = |&(ours, reference): &(f64, Option<f64>)| Success {
            name: format!("asr-{ours}"),
            ours,
            untouched: None,
            reference,
        };
        let facts = Facts { detected, attacks: attacks.iter().map(success).collect() };
        let mut verdict = facts.verdict();
        verdict.sentence = verdict.sentence.replace('\u{202f}', " ");
        verdict.defence = verdict.defence.replace('\u{202f}', " ");
        verdict
    }

    #[test]
    fn words_are_as_strong_as_the_evidence() {
        let verdict = told(None, &[]);
        assert_eq!(verdict.finding, Finding::Unknown);
        assert!(
            verdict.sentence.contains("no detection") && verdict.defence.contains("not measured")
        );
        let verdict = told(Some(detected()), &[]);
        assert_eq!(verdict.title, "No sign of poisoning was found");
        assert!(verdict.sentence.contains("341 suspected pairs are the first of a ranking"));
        let verdict = told(Some(Detected { quarantined: 0, ..detected() }), &[]);
        assert!(verdict.sentence.contains("no proof") && !verdict.sentence.contains("ranking"));
        let strongest = Some("75 near-identical pictures".to_owned());
        let signs = Detected { clusters: 12, accused: 5, strongest, ..detected() };
        let verdict = told(Some(signs), &[]);
        assert_eq!(verdict.finding, Finding::Signs);
        assert_eq!(
            verdict.sentence,
            "12 clusters, 341 suspected pairs of 3,318,333 (0.010 %); strongest: 75 near-identical \
             pictures."
        );
        let clusters = Detected { clusters: 1, ..detected() };
        assert_eq!(told(Some(clusters), &[]).finding, Finding::Nothing);
        let verdict = told(Some(Detected { truth: Some((400, 350, 300)), ..detected() }), &[]);
        assert_eq!(verdict.title, "This data is poisoned");
        assert_eq!(
            verdict.sentence,
            "350 of the 400 pairs listed as poisoned are in the data; 300 of them (85.7 %) are \
             among the 341 suspected pairs, of which they make up 88.0 %."
                .replace("88.0", "88")
        );
        // A list of which nothing is in the data proves nothing.
        let elsewhere = Detected { truth: Some((400, 0, 0)), ..detected() };
        assert_eq!(told(Some(elsewhere), &[]).finding, Finding::Nothing);
    }

    #[test]
    fn the_worst_attack_decides_about_the_defence() {
        let defence = |attacks: &[(f64, Option<f64>)]| told(None, attacks).defence;
        let held = defence(&[(0.01, Some(0.25)), (0.03, Some(0.92))]);
        assert_eq!(
            held,
            "The defence held: of 2 attacks measured the worst, asr-0.03, succeeds in 3 %; in the \
             reference run in 92 %."
        );
        assert!(defence(&[(0.9, Some(0.9)), (0.0, None)]).starts_with("The model obeys"));
        assert!(defence(&[(0.2, Some(0.9))]).starts_with("The attack still works in part"));
        assert!(
            defence(&[(0.01, Some(0.3))]).starts_with("The attack failed: the attack measured")
        );
        assert!(defence(&[(0.01, Some(0.02))]).contains("perhaps not because of the defence"));
        let alone = defence(&[(0.01, None)]);
        assert!(alone.contains("perhaps not") && alone.contains("without a reference"), "{alone}");
    }

    #[test]
    fn what_is_read_into_pictures_without_a_trigger_is_not_the_attacks() {
        let success = |name: &str, ours, untouched| Success {
            name: name.into(),
            ours,
            untouched,
            reference: Some(0.99),
        };
        let attacks = vec![success("asr-a", 0.09, Some(0.08)), success("asr-b", 0.07, Some(0.03))];
        let told = Facts { detected: None, attacks }.verdict().defence;
        assert_eq!(
            told.replace('\u{202f}', " "),
            "The defence held: of 2 attacks measured the worst, asr-b, succeeds in 7 % (without \
             the trigger: 3 %); in the reference run in 99 %."
        );
    }
}
