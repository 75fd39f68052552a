//! Parameters end to end, as other programs know them ↔ flat buffers, where they begin at multiples
//! of 64.

use roclip::flow::ParamTable;

/// A flat buffer with these `values` of all parameters, one behind the other; zeros between.
pub fn spread<T: Copy + Default>(table: &ParamTable, values: &[T]) -> Vec<T> {
    assert_eq!(values.len(), table.values());
    let (mut flat, mut rest) = (vec![T::default(); table.len()], values);
    for param in table.iter() {
        let (own, behind) = rest.split_at(param.slot.len);
        flat[param.slot.range()].copy_from_slice(own);
        rest = behind;
    }
    flat
}

/// The values of all parameters of a flat buffer, one behind the other.
pub fn packed<T: Copy>(table: &ParamTable, flat: &[T]) -> Vec<T> {
    assert_eq!(flat.len(), table.len());
    table.iter().flat_map(|param| flat[param.slot.range()].iter().copied()).collect()
}
