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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Whether they belong to the text tower.
    pub text: bool,
    /// Whether they decay.
    pub decays: bool,
    /// Whether they are left as they are; the rest is then false.
    pub locked: bool,
}

impl Group {
    fn of(param: &Param, rule: DecayRule) -> Self {
        if param.locked {
            return Self { text: false, decays: false, locked: true };
        }
        let (text, decays) = (param.tower() == Tower::Text, rule.decays(param));
        Self { text, decays, locked: false }
    }
}

/// All there can be.
pub(super) const GROUPS: [Group; 5] = [
    Group { text: false, decays: true, locked: false },
    Group { text: false, decays: false, locked: false },
    Group { text: true, decays: true, locked: false },
    Group { text: true, decays: false, locked: false },
    Group { text: false, decays: false, locked: true },
];

/// For every [`Slot::ALIGN`] elements of the flat buffers the place of their group in [`GROUPS`].
///
/// Panics where parameters of two groups share such a block: the table's author put them beside
/// each other.
pub(super) fn group_map(table: &ParamTable, rule: DecayRule) -> Vec<u32> {
    let mut map = vec![None; table.len() / Slot::ALIGN];
    for param in table.iter() {
        let kind = Group::of(param, rule);
        let group = GROUPS.iter().position(|g| *g == kind).expect("all kinds are there");
        let slot = param.slot.range();
        for block in &mut map[slot.start / Slot::ALIGN..slot.end.div_ceil(Slot::ALIGN)] {
            let before = *block.get_or_insert(group as u32);
            assert_eq!(before, group as u32, "{} lies beside another group's", param.name);
        }
    }
    map.into_iter().map(|group| group.expect("every block is a parameter's")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Locks;

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
    fn every_block_has_the_group_of_its_parameter() {
        let mut table = table(&[
            ("visual.a", &[13, 10]),
            ("visual.b", &[4, 16]),
            ("visual.b.bias", &[1]),
            ("text_projection", &[2, 2]),
        ]);
        table.push("ln_final.weight", &[63]);
        table.push_beside("ln_final.bias", &[63]);
        table.push("logit_scale", &[]);
        let expected = [0, 0, 0, 0, 1, 2, 3, 3, 1];
        assert_eq!(group_map(&table, DecayRule::ByShape), expected);
        assert_eq!(table.len(), 64 * expected.len());
        table.lock(Locks { image: None, text: Some(1) });
        assert_eq!(group_map(&table, DecayRule::ByShape), [0, 0, 0, 0, 1, 2, 4, 4, 1]);
    }

    #[test]
    #[should_panic(expected = "visual.b lies beside another group's")]
    fn two_groups_in_one_block_are_a_mistake() {
        let mut table = table(&[("visual.a", &[2])]);
        table.push_beside("visual.b", &[2, 2]);
        group_map(&table, DecayRule::ByShape);
    }
}
