//! Launches of `kernels/pool.cu`; an insertion is one copy, or two where the ring wraps.

use super::api::{self, PoolInt8Bytes, PoolMatch};
use super::machine::{Address, Machine};
use super::{Gpu, Kernels, int};
use crate::backend::ops::pool::{Pool, TOP_K};
use crate::backend::{Device, View, ViewMut};
use crate::error::Result;
use half::bf16;
use std::ffi::c_void;
use std::ptr::null_mut;

const _: () = assert!(TOP_K == api::ROCLIP_TOP_K as usize, "the contract's k is the kernels'");

impl<M: Machine> Gpu<M> {
    /// Bytes of scratch memory for a search in 8 bits; 0 where there is to be none.
    fn int8_bytes(&self, k: usize, queries_n: i64, pool_n: i64, width: usize) -> usize {
        let mut bytes = 0;
        if self.kernels == Kernels::Int8 && k == 1 {
            let args =
                PoolInt8Bytes { queries_n, pool_n, width: int(width), bytes: &raw mut bytes };
            let launcher = self.machine.kernels().pool_int8_bytes.expect("the table is full");
            // SAFETY: it starts nothing and writes the one number.
            unsafe { launcher(null_mut(), &raw const args) };
        }
        bytes as usize
    }
}

impl<M: Machine> Pool for Gpu<M> {
    fn pool_match(
        &self,
        width: usize,
        k: usize,
        queries: View<'_, Self, bf16>,
        rows: View<'_, Self, bf16>,
        index: ViewMut<'_, Self, u32>,
        score: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let (queries_n, pool_n) = ((queries.len / width) as i64, (rows.len / width) as i64);
        let int8 = self.int8_bytes(k, queries_n, pool_n, width);
        let of_query = if k == 1 { 1 } else { api::ROCLIP_TOP_K as usize };
        let candidates = api::ROCLIP_STRIPS as usize * of_query * queries_n as usize;
        let each = candidates * size_of::<f32>();
        let scratch = self.scratch(int8 + 2 * each)?;
        let best = scratch + int8 as Address;
        let args = PoolMatch {
            queries: queries.ptr(),
            pool: rows.ptr(),
            index: index.ptr(),
            score: score.ptr(),
            best_score: best as *mut f32,
            best_index: (best + each as Address) as *mut u32,
            queries_n,
            pool_n,
            width: int(width),
            k: int(k),
            kernel: self.kernel(),
            int8_scratch: if int8 == 0 { null_mut() } else { scratch as *mut c_void },
        };
        self.launch("pool::matching", |k| k.pool_match, args)
    }

    fn pool_insert(
        &self,
        width: usize,
        rows: View<'_, Self, bf16>,
        pool: ViewMut<'_, Self, bf16>,
        at: usize,
    ) -> Result<()> {
        let at = at * width;
        let before_end = rows.len.min(pool.len - at);
        let (start, end) = (pool.offset, pool.offset + pool.len);
        let first = View { len: before_end, ..rows };
        self.copy(first, ViewMut::of(pool.buf, start + at..start + at + before_end))?;
        let (offset, len) = (rows.offset + before_end, rows.len - before_end);
        if len > 0 {
            debug_assert!(start + len <= end, "the contract lets in no more than the ring holds");
            self.copy(View { offset, len, ..rows }, ViewMut::of(pool.buf, start..start + len))?;
        }
        Ok(())
    }
}
