//! Loops compiled for the widest registers of the machine they run on.
//!
//! Rust compiles for the oldest x86-64 unless told otherwise. A function within [`vectorised!`] is
//! compiled three times and chosen when called; [`avx2_or!`] chooses between two that were written
//! by hand. No level may contract `a·b + c` by itself, and none changes the order of a sum, so all
//! levels of a vectorised function give the same bits.

use std::sync::OnceLock;

/// What the machine can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every machine of this architecture has.
    Base,
    /// 256-bit registers, fused multiply-add and the bit instructions of the same machines.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512-bit registers.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The highest of this machine, or a lower one that the environment variable `ROCLIP_SIMD`
    /// names (`base`, `avx2`): to get the bits of an older machine, and to test what it would run.
    ///
    /// # Panics
    /// If `ROCLIP_SIMD` is none of `base`, `avx2`, `avx512`.
    #[inline(always)]
    pub fn detect() -> Self {
        static LEVEL: OnceLock<Level> = OnceLock::new();
        *LEVEL.get_or_init(|| match std::env::var("ROCLIP_SIMD") {
            Ok(name) => Self::named(&name).min(Self::highest()),
            Err(_) => Self::highest(),
        })
    }

    fn named(name: &str) -> Self {
        match name {
            "base" => Level::Base,
            #[cfg(target_arch = "x86_64")]
            "avx2" => Level::Avx2,
            #[cfg(target_arch = "x86_64")]
            "avx512" => Level::Avx512,
            _ => panic!("ROCLIP_SIMD={name}: it must be base, avx2 or avx512, or not be set"),
        }
    }

    fn highest() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("bmi1") && has!("bmi2") && has!("lzcnt") {
                let wide = has!("avx512f") && has!("avx512vl");
                if wide && has!("avx512bw") && has!("avx512dq") {
                    return Level::Avx512;
                }
                return Level::Avx2;
            }
        }
        Level::Base
    }
}

/// Compiles a function for every [`Level`]; what it calls must be `#[inline(always)]`. It may have
/// one type parameter.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$F:ident: $bound:path>)?
        ($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name $(<$F: $bound>)? ($($arg: $type),*) $(-> $result)? {
            #[allow(clippy::too_many_arguments, reason = "as the function itself")]
            #[inline(always)]
            fn body $(<$F: $bound>)? ($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                use $crate::simd::Level;

                #[allow(clippy::too_many_arguments, reason = "as the function itself")]
                #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
                fn avx2 $(<$F: $bound>)? ($($arg: $type),*) $(-> $result)? {
                    body $(::<$F>)? ($($arg),*)
                }

                #[allow(clippy::too_many_arguments, reason = "as the function itself")]
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,bmi1,bmi2,lzcnt")]
                fn avx512 $(<$F: $bound>)? ($($arg: $type),*) $(-> $result)? {
                    body $(::<$F>)? ($($arg),*)
                }

                match Level::detect() {
                    Level::Base => {}
                    // SAFETY: `Level::detect` found the features that the function is compiled for.
                    Level::Avx2 => return unsafe { avx2 $(::<$F>)? ($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx512 => return unsafe { avx512 $(::<$F>)? ($($arg),*) },
                }
            }
            body $(::<$F>)? ($($arg),*)
        }
    };
}
pub(crate) use vectorised;

/// `avx2_or!(fast(a, b), plain(a, b))`: calls `fast`, which may be compiled for
/// `avx2,fma,bmi1,bmi2,lzcnt`, where the machine has these, else `plain`.
macro_rules! avx2_or {
    ($fast:ident $(::<$($generic:ident),*>)? ($($arg:expr),* $(,)?), $plain:expr) => {{
        #[cfg(target_arch = "x86_64")]
        if $crate::simd::Level::detect() != $crate::simd::Level::Base {
            // SAFETY: `Level::detect` found the features that the function is compiled for.
            unsafe { $fast $(::<$($generic),*>)? ($($arg),*) }
        } else {
            $plain
        }
        #[cfg(not(target_arch = "x86_64"))]
        $plain
    }};
}
pub(crate) use avx2_or;
