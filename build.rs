//! Builds the kernels for the features that need them: `cuda` with nvcc, `sim` with the host's C++
//! compiler. Without these features it does nothing.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    #[cfg(any(feature = "cuda", feature = "sim"))]
    kernels::bindings();
    #[cfg(any(feature = "cuda", feature = "sim"))]
    if !kernels::is_clippy() {
        #[cfg(feature = "cuda")]
        kernels::cuda();
        #[cfg(feature = "sim")]
        kernels::sim();
    }
}

#[cfg(any(feature = "cuda", feature = "sim"))]
mod kernels {
    use std::env;
    #[cfg(feature = "cuda")]
    use std::path::Path;
    use std::path::PathBuf;

    /// Whether clippy asks, which links nothing: what headers declare is enough, and the kernels
    /// would take minutes.
    pub fn is_clippy() -> bool {
        let wrapper = env::var_os("RUSTC_WORKSPACE_WRAPPER").unwrap_or_default();
        PathBuf::from(wrapper).file_stem().is_some_and(|name| name == "clippy-driver")
    }

    /// What the C headers declare, as Rust; bf16 is `half`'s.
    pub fn bindings() {
        println!("cargo:rerun-if-env-changed=LIBCLANG_PATH");
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
        bindgen::Builder::default()
            .header("kernels/roclip.h")
            .header("kernels/selftest/selftest.h")
            .header("kernels/sim/sim_api.h")
            .allowlist_type("Roclip.*")
            .allowlist_function("roclip_.*")
            .allowlist_var("ROCLIP_.*|roclip_.*")
            .blocklist_type("bf16")
            .raw_line("use half::bf16;")
            .prepend_enum_name(false)
            .derive_debug(false)
            .generate()
            .expect("bindgen reads the headers; it needs libclang (scripts/install-cuda.sh)")
            .write_to_file(out.join("kernels.rs"))
            .expect("OUT_DIR can be written");
    }

    /// The files `kernels/*.cu`, and the kernels that check the emulation.
    fn files() -> Vec<PathBuf> {
        let folders = ["kernels", "kernels/selftest"];
        let entries = folders.map(|folder| std::fs::read_dir(folder).expect("kernels/").flatten());
        let mut files: Vec<_> = entries.into_iter().flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "cu"));
        files.sort();
        files
    }

    /// What machine code is made: every tensor-core generation since Ampere, and PTX for the rest.
    #[cfg(feature = "cuda")]
    const TARGETS: [&str; 4] = [
        "arch=compute_80,code=sm_80",
        "arch=compute_90a,code=sm_90a",
        "arch=compute_100,code=sm_100",
        "arch=compute_80,code=compute_80",
    ];

    /// The toolkit: `$CUDA_HOME`, `$CUDA_PATH`, or where its installer puts it.
    #[cfg(feature = "cuda")]
    fn toolkit() -> PathBuf {
        for name in ["CUDA_HOME", "CUDA_PATH"] {
            println!("cargo:rerun-if-env-changed={name}");
        }
        let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().find_map(env::var_os);
        let home = named.map_or("/usr/local/cuda".into(), PathBuf::from);
        let found = home.join("bin/nvcc").exists();
        assert!(
            found,
            "feature `cuda` needs nvcc, which is not in {}: install a CUDA 13 toolkit and set \
             CUDA_HOME, or run: eval \"$(scripts/install-cuda.sh)\"",
            home.join("bin").display()
        );
        home
    }

    /// One library for each file: with several in one, `cc` compiles relocatable device code, and
    /// ptxas then ignores what kernels say about registers.
    #[cfg(feature = "cuda")]
    pub fn cuda() {
        let home = toolkit();
        // SAFETY: the only thread so far. `cc` takes its CUDA compiler from here alone.
        unsafe { env::set_var("NVCC", home.join("bin/nvcc")) };
        let build = |file: &Path| {
            let mut build = cc::Build::new();
            build.cuda(true).cudart("none").std("c++17");
            // -G, which debug info would bring, turns the optimiser off
            build.opt_level(3).debug(false).cpp_link_stdlib(None);
            build.include("kernels").flag("-lineinfo").file(file);
            build.flag("-Xcompiler").flag("-fno-exceptions,-fno-threadsafe-statics");
            for target in TARGETS {
                build.flag("-gencode").flag(target);
            }
            let name = file.file_stem().expect("a file has a name").to_string_lossy();
            build.compile(&format!("roclip_cuda_{name}"));
        };
        let files = files();
        std::thread::scope(|scope| {
            for file in &files {
                scope.spawn(|| build(file));
            }
        });
        let libraries = ["lib64", "lib", "targets/x86_64-linux/lib"].map(|dir| home.join(dir));
        if let Some(dir) = libraries.iter().find(|dir| dir.join("libcudart_static.a").exists()) {
            println!("cargo:rustc-link-search=native={}", dir.display());
        }
        println!("cargo:rustc-link-lib=static=cudart_static");
        for library in ["dl", "rt", "pthread"] {
            println!("cargo:rustc-link-lib=dylib={library}");
        }
    }

    /// The emulation, and the same files for it.
    #[cfg(feature = "sim")]
    pub fn sim() {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").opt_level(2).debug(false).warnings(false).include("kernels");
        // see kernels/sim/README.md
        build.flag("-fno-data-sections").flag("-Wno-psabi");
        build.flag(
            "-fsanitize=alignment,bounds,integer-divide-by-zero,shift,signed-integer-overflow",
        );
        for file in files() {
            build.flag("-xc++").file(file);
        }
        build.compile("roclip_sim");
    }
}
