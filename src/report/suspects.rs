//! The pairs and clusters that look most suspicious, with their pictures.

use super::detection::{Cluster, Detection, Member, Suspect};
use super::pictures::{Album, Name, Shown, Wanted, average, data_url};
use super::text::{count, counted, figure, shown};
use crate::detect::rank::{CONFLICT, least};
use image::RgbImage;
use maud::{Markup, html};

/// Clusters of pictures, and of captions, that are shown.
const CLUSTERS: [usize; 2] = [12, 6];
/// Pictures of a cluster that are shown, and that its average is made of.
const SHEET: usize = 24;
const AVERAGED: usize = 64;
/// Captions of a cluster that are listed.
const CAPTIONS: usize = 8;
/// Suspects before the fold.
const OPEN: usize = 20;
/// A pair that agrees with its cluster so much less than the others do is the odd one: a third of
/// what two unrelated captions differ by.
const ODD: f64 = 0.2;

impl Cluster {
    /// Whether that these pictures are nearly one and their captions are not is evidence.
    pub fn is_odd(&self) -> bool {
        least(CONFLICT).zip(self.conflict).is_some_and(|(least, conflict)| conflict >= least)
    }

    /// The pair whose other side differs most from the others', where it does differ.
    fn odd_one(&self) -> Option<&Member> {
        self.rows.first().filter(|row| row.oddness.is_some_and(|oddness| oddness >= ODD))
    }
}

/// What the pairs of a cluster share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Pictures,
    Captions,
}

impl Side {
    fn heading(self) -> &'static str {
        match self {
            Self::Pictures => "Pictures that are nearly one",
            Self::Captions => "Captions that are nearly one",
        }
    }

    /// What they may differ in.
    fn other(self) -> &'static str {
        match self {
            Self::Pictures => "captions",
            Self::Captions => "pictures",
        }
    }
}

/// The clusters that are shown: odd ones first, then the largest.
fn chosen(clusters: &[Cluster], most: usize) -> Vec<&Cluster> {
    let mut chosen: Vec<&Cluster> = clusters.iter().collect();
    chosen.sort_by_key(|cluster| (!cluster.is_odd(), std::cmp::Reverse(cluster.size)));
    chosen.truncate(most);
    chosen
}

/// Both kinds of clusters that are shown.
fn kinds(found: &Detection) -> [Vec<&Cluster>; 2] {
    [chosen(&found.pictures, CLUSTERS[0]), chosen(&found.captions, CLUSTERS[1])]
}

/// All pairs that these sections show.
pub(super) fn wanted(found: &Detection) -> Wanted {
    let mut wanted = Wanted::new();
    let mut want = |shard: &str, name: Name, picture: bool| {
        *wanted.entry(shard.to_owned()).or_default().entry(name).or_default() |= picture;
    };
    for suspect in &found.suspects {
        want(&suspect.shard, Name::Index(suspect.index), true);
        suspect.chosen.iter().for_each(|c| want(&c.shard, Name::Index(c.index), false));
    }
    for cluster in kinds(found).into_iter().flatten() {
        let rows = cluster.rows.iter().take(AVERAGED);
        rows.for_each(|row| want(&row.shard, Name::Key(row.key.clone()), true));
    }
    wanted
}

/// The strongest case in words, for the verdict.
pub(super) fn strongest(found: &Detection, album: &Album) -> Option<String> {
    let caption = |shown: Result<&Shown, &str>| {
        shown.map_or(String::new(), |pair| format!(" “{}”", super::text::shown(&pair.caption)))
    };
    if let Some(cluster) = chosen(&found.pictures, 1).first().filter(|cluster| cluster.is_odd()) {
        let row = cluster.rows.first()?;
        let caption = caption(album.get(&row.shard, Name::Key(row.key.clone())));
        let size = count(cluster.size);
        let told =
            if caption.is_empty() { String::new() } else { format!(", one captioned{caption}") };
        return Some(format!("{size} pictures that are nearly one{told}"));
    }
    let first = found.suspects.first()?;
    let caption = caption(album.get(&first.shard, Name::Index(first.index)));
    Some(format!("the pair {}:{}{caption}", shown(&first.shard), shown(&first.key)))
}

/// A picture, or why there is none.
fn picture(shown: Result<&Shown, &str>, name: &str) -> Markup {
    let picture = shown.and_then(|pair| pair.picture.as_ref().map_err(String::as_str));
    match picture {
        Ok(picture) => img(picture, name, false),
        Err(reason) => html! { span.damaged title="no picture" { (super::text::shown(reason)) } },
    }
}

fn img(picture: &RgbImage, name: &str, exact: bool) -> Markup {
    let (width, height) = picture.dimensions();
    html! { img src=(data_url(picture, exact)) alt=(name) width=(width) height=(height); }
}

fn caption(pair: Result<&Shown, &str>) -> Markup {
    match pair {
        Ok(pair) => html! { q dir="auto" { (shown(&pair.caption)) } },
        Err(reason) => html! { span.none { "no caption: " (shown(reason)) } },
    }
}

/// Section 4.
pub(super) fn section(found: &Detection, album: &Album) -> Markup {
    let (open, folded) = found.suspects.split_at(found.suspects.len().min(OPEN));
    let article = |suspect: &Suspect| article(suspect, found, album);
    let by = found.summary.by.iter().map(String::as_str);
    let evidence = found.summary.evidence.iter();
    let evidence: Vec<String> = evidence
        .map(|(name, least)| format!("{name} from {} on", figure((*least).into())))
        .collect();
    let evidence = evidence.join(", ");
    let by: Vec<&str> = by.filter(|name| found.score(name).is_some()).collect();
    html! {
        section #suspects {
            h2 { "The most suspicious pairs" }
            p {
                @if !evidence.is_empty() {
                    "First come those against whom there is evidence (" (shown(&evidence)) "), the \
                     others by " (shown(&by.join(", "))) ", which is no more than suspicion. "
                } @else {
                    "Ranked by " (shown(&by.join(", "))) ". "
                }
                "Beneath each caption stands what the pool of recent captions held nearest to the \
                 picture, which is what RoCLIP trains it towards: where that describes the picture \
                 and the caption does not, suspect the caption."
            }
            @if found.suspects.is_empty() { p.none { "The ranking is empty." } }
            ol.suspects { @for suspect in open { (article(suspect)) } }
            @if !folded.is_empty() {
                details {
                    summary { (counted(folded.len() as u64, "more suspect")) }
                    ol.suspects { @for suspect in folded { (article(suspect)) } }
                }
            }
            p.note { code { "scores.jsonl" } " of the detection has every pair." }
        }
    }
}

fn article(suspect: &Suspect, found: &Detection, album: &Album) -> Markup {
    let pair = album.get(&suspect.shard, Name::Index(suspect.index));
    let scores = suspect.scores.iter().filter_map(|(name, score)| Some((name, (*score)?)));
    html! {
        li.suspect value=(suspect.rank) {
            div.thumb { (picture(pair, &format!("picture of suspect {}", suspect.rank))) }
            div.told {
                p.what {
                    span.rank { (count(suspect.rank)) } " "
                    @if u64::from(suspect.rank) > found.summary.quarantined {
                        span.badge { "not in quarantine" } " "
                    }
                    @match suspect.poisoned {
                        Some(true) => { span.badge.poisoned { "poisoned" } " " }
                        Some(false) => { span.badge { "clean" } " " }
                        None => {}
                    }
                    (caption(pair))
                }
                @for chosen in &suspect.chosen {
                    p.pool {
                        span.cosine { (figure(f64::from(chosen.cosine))) } " "
                        (caption(album.get(&chosen.shard, Name::Index(chosen.index))))
                    }
                }
                p.place { code { (shown(&suspect.shard)) ":" (shown(&suspect.key)) } }
                @if !suspect.reason.is_empty() { p.reason { (shown(&suspect.reason)) } }
                dl.scores {
                    div { dt { "score" } dd { (figure(f64::from(suspect.score))) } }
                    @for (name, score) in scores {
                        div { dt { (shown(name)) } dd { (figure(f64::from(score))) } }
                    }
                }
            }
        }
    }
}

/// Section 5.
pub(super) fn clusters(found: &Detection, album: &Album) -> Markup {
    let [pictures, captions] = kinds(found);
    let counts = &found.summary.clusters;
    let least = format!("{:.3}", counts.threshold);
    let pair = |s: &Suspect| album.get(&s.shard, Name::Index(s.index)).ok();
    let all = found.suspects.iter().filter_map(pair).filter_map(|p| p.picture.as_ref().ok());
    html! {
        section #clusters {
            h2 { "What repeats itself" }
            p {
                "The average of pictures shows what they have in common and blurs everything else: \
                 a patch that was stamped into all of them stands out as one sharp spot, a pattern \
                 that was blended into them as a texture."
            }
            @if let Some(mean) = average(all) {
                figure.average {
                    (img(&mean, "average of the suspects' pictures", true))
                    figcaption { "The suspects listed above, averaged." }
                }
            }
            @for (kind, total, list) in [
                (Side::Pictures, counts.pictures, pictures),
                (Side::Captions, counts.captions, captions),
            ] {
                h3 { (kind.heading()) }
                @if list.is_empty() {
                    p.none { "None with a similarity of at least " (least) "." }
                } @else {
                    p.note {
                        (counted(total, "cluster")) " with a similarity of at least "
                        (least) "; shown: " (list.len()) "."
                    }
                    @for (n, one) in list.iter().enumerate() { (cluster(kind, one, n < 3, album)) }
                }
            }
        }
    }
}

fn cluster(side: Side, cluster: &Cluster, open: bool, album: &Album) -> Markup {
    let get = |row: &Member| album.get(&row.shard, Name::Key(row.key.clone()));
    let rows = cluster.rows.iter().take(AVERAGED);
    let pictures: Vec<&RgbImage> =
        rows.clone().filter_map(|row| get(row).ok()?.picture.as_ref().ok()).collect();
    let mut captions: Vec<(&str, usize)> = Vec::new();
    for pair in rows.clone().filter_map(|row| get(row).ok()) {
        match captions.iter_mut().find(|(known, _)| *known == pair.caption) {
            Some((_, times)) => *times += 1,
            None => captions.push((&pair.caption, 1)),
        }
    }
    let is_odd = side == Side::Pictures && cluster.is_odd();
    let odd = cluster.odd_one().filter(|_| is_odd);
    let other = side.other();
    html! {
        details.cluster open=[open.then_some("")] {
            summary {
                (counted(cluster.size, "pair")) @if is_odd { " · " em { "disagree" } }
                @if let Some(agreement) = cluster.agreement {
                    " · similarity of their " (other) " " (format!("{agreement:.2}"))
                }
            }
            div.common {
                @if let Some(mean) = average(pictures.iter().copied()) {
                    figure.average {
                        (img(&mean, "average of the cluster's pictures", true))
                        figcaption { "Average of " (pictures.len()) "." }
                    }
                }
                div {
                    @if let Some(odd) = odd {
                        p {
                            "The odd one: " (caption(get(odd))) " "
                            code { (shown(&odd.shard)) ":" (shown(&odd.key)) }
                        }
                    }
                    ul.captions { @for (text, times) in captions.iter().take(CAPTIONS) { li {
                        q dir="auto" { (shown(text)) } @if *times > 1 { " × " (times) }
                    } } }
                    @if captions.len() > CAPTIONS {
                        p.note { (captions.len() - CAPTIONS) " more captions" }
                    }
                }
            }
            div.sheet { @for row in rows.take(SHEET) {
                (picture(get(row), &format!("picture of {}", shown(&row.key))))
            } }
            @if cluster.size as usize > SHEET {
                p.note { "The first " (SHEET) " of " (count(cluster.size)) ", the oddest first." }
            }
        }
    }
}

/// What stands where detection did not run.
pub(super) fn none() -> Markup {
    html! {
        section #suspects {
            h2 { "The most suspicious pairs" }
            p.none {
                "There is no detection for this run, so there are no suspects, clusters and scores \
                 to show."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::detection::tests::folder;

    fn cluster(size: u64, conflict: Option<f32>) -> Cluster {
        let row = Member { shard: "a".into(), key: "k".into(), oddness: None };
        Cluster { size, agreement: Some(0.5), conflict, rows: vec![row] }
    }

    #[test]
    fn odd_clusters_come_first() {
        let odd = [cluster(3, Some(2.0)), cluster(9, Some(2.5))];
        let plain = [cluster(2, Some(0.9)), cluster(50, Some(1.9)), cluster(50, None)];
        assert!(odd.iter().all(Cluster::is_odd) && !plain.iter().any(Cluster::is_odd));
        let all: Vec<Cluster> = plain.into_iter().chain(odd).collect();
        let sizes: Vec<u64> = chosen(&all, 4).iter().map(|cluster| cluster.size).collect();
        assert_eq!(sizes, [9, 3, 50, 50]);
    }

    #[test]
    fn what_cannot_be_fetched_is_told_where_it_would_stand() {
        let dir = folder();
        let found = Detection::read(dir.path(), None, 30).unwrap();
        let album = super::super::pictures::Library::default().fetch(&wanted(&found));
        let page = section(&found, &album).into_string();
        assert_eq!(page.matches("its shard is not among the shards; give --shards").count(), 60);
        assert_eq!(page.matches("not in quarantine").count(), 26);
        assert!(page.contains("r1") && page.contains("a.tar:k39"));
        let page = clusters(&found, &album).into_string();
        assert!(page.contains("3 pairs") && page.contains("captions 0.25"), "{page}");
        let told = strongest(&found, &album).unwrap();
        assert_eq!(told, "3 pictures that are nearly one");
    }
}
