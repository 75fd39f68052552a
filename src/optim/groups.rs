//! Which parameters share an update: those that decay alike and are frozen together.

use crate::backend::Slot;
use crate::flow::{Param, ParamTable, Tower};

/// Which parameters weight decay applies to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DecayRule {
    /// open_clip's: neither those with less than two axes nor those that [`DecayRule::ByName`]
    /// excludes.
    #[default]
    ByShape,
    /// The released RoCLIP's: all but those whose name contains `bn`, `ln`, `bias` or
    /// `logit_scale`. Norms of other names (`downsample.1.weight`) do decay.
    ByName,
}

impl DecayRule {
    /// Whether `param` decays.
    pub fn decays(self, param: &Param) -> bool {
        let excluded = ["bn", "ln", "bias", "logit_scale"];
        let named = excluded.iter().any(|part| param.name.contains(part));
        !named && (self == Self::ByName || param.shape.len() >= 2)
    }
}

/// Parameters updated with the same numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Whether they belong to the text tower.
    pub text: bool,
    /// Whether they decay.
    pub decays: bool,
    /// Where they lie; neighbours are joined, as the update does not look across parameters.
    pub slots: Vec<Slot>,
}

/// The groups of a model, none empty.
pub(super) fn groups(table: &ParamTable, rule: DecayRule) -> Vec<Group> {
    let kinds = [(false, true), (false, false), (true, true), (true, false)];
    let mut groups = kinds.map(|(text, decays)| Group { text, decays, slots: Vec::new() });
    for param in table.iter() {
        let kind = (param.tower() == Tower::Text, rule.decays(param));
        let group = groups.iter_mut().find(|g| (g.text, g.decays) == kind);
        let group = group.expect("all four kinds are there");
        match group.slots.last_mut() {
            Some(last) if last.offset + last.len == param.slot.offset => {
                *last = last.join(param.slot)
            }
            _ => group.slots.push(param.slot),
        }
    }
    groups.into_iter().filter(|g| !g.slots.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(params: &[(&str, &[usize])]) -> ParamTable {
        let mut table = ParamTable::default();
        for (name, shape) in params {
            table.push(*name, shape);
        }
        table
    }

    /// The two rules on names of open_clip's ViT and ResNet, decided by hand from its source.
    #[test]
    fn which_decay() {
        let cases: [(&str, &[usize], bool, bool); 11] = [
            ("logit_scale", &[], false, false),
            ("positional_embedding", &[77, 512], true, true),
            ("text_projection", &[512, 512], true, true),
            ("visual.class_embedding", &[768], false, true),
            ("visual.conv1.weight", &[768, 3, 32, 32], true, true),
            ("visual.ln_pre.weight", &[768], false, false),
            ("visual.layer1.0.bn3.weight", &[256], false, false),
            ("visual.layer1.0.downsample.1.weight", &[256], false, true),
            ("transformer.resblocks.0.attn.in_proj_bias", &[1536], false, false),
            ("transformer.resblocks.0.mlp.c_fc.weight", &[2048, 512], true, true),
            ("ln_final.bias", &[512], false, false),
        ];
        for (name, shape, by_shape, by_name) in cases {
            let table = table(&[(name, shape)]);
            let param = table.iter().next().unwrap();
            assert_eq!(DecayRule::ByShape.decays(param), by_shape, "{name}");
            assert_eq!(DecayRule::ByName.decays(param), by_name, "{name}");
        }
    }

    #[test]
    fn neighbours_are_joined_and_nothing_is_lost() {
        let table = table(&[
            ("visual.a", &[2, 2]),
            ("visual.b", &[3, 1]),
            ("visual.b.bias", &[3]),
            ("text_projection", &[2, 2]),
            ("logit_scale", &[]),
        ]);
        let slots = |text, decays| {
            let groups = groups(&table, DecayRule::ByShape);
            let group = groups.into_iter().find(|g| (g.text, g.decays) == (text, decays));
            group.map(|g| g.slots.iter().map(|s| (s.offset, s.len)).collect::<Vec<_>>())
        };
        assert_eq!(slots(false, true), Some(vec![(0, 7)]));
        assert_eq!(slots(false, false), Some(vec![(7, 3), (14, 1)]));
        assert_eq!(slots(true, true), Some(vec![(10, 4)]));
        assert_eq!(slots(true, false), None);
    }
}
