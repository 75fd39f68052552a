//! Who started this process, and as which of how many: read from what torchrun, `mpirun`, `srun`
//! and MPICH's launchers leave in the environment.

use crate::error::{Error, Result};
use std::fmt;

/// Port of the meeting point where nobody said one: torchrun's default.
const PORT: u16 = 29500;

/// Who started the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// Nobody: one process.
    Shell,
    /// torchrun, or a script that sets the variables that torchrun sets.
    Torchrun,
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// MPICH's or Intel MPI's `mpiexec`.
    Mpich,
    /// Slurm's `srun`.
    Slurm,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shell => "nobody",
            Self::Torchrun => "torchrun",
            Self::OpenMpi => "mpirun",
            Self::Mpich => "mpiexec",
            Self::Slurm => "srun",
        })
    }
}

/// One process among those that train together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Who started it.
    pub launcher: Launcher,
    /// This process, `0 <= rank < world_size`.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
    /// This process among those of its machine: which GPU is its own.
    pub local_rank: usize,
    /// Where rank 0 can be met, host and port; `None` where the launcher does not say.
    pub master: Option<(String, u16)>,
    /// Where torchrun's own store listens, which then has the port of the meeting point.
    pub agent_store: bool,
    /// What tells this start from an earlier one of the same job.
    pub attempt: String,
}

impl Launch {
    /// A process of its own.
    pub fn solo() -> Self {
        Self {
            launcher: Launcher::Shell,
            rank: 0,
            world_size: 1,
            local_rank: 0,
            master: None,
            agent_store: false,
            attempt: String::new(),
        }
    }

    /// Reads the environment of this process.
    ///
    /// # Errors
    /// [`Error::Option`] where a variable that a launcher set makes no sense.
    pub fn from_env() -> Result<Self> {
        Self::read(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// [`Launch::from_env`], with `get` in place of the environment.
    ///
    /// torchrun comes first: within a job of Slurm it is what started this process.
    fn read(get: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let env = Env(get);
        let found = [
            (Launcher::Torchrun, ["RANK", "WORLD_SIZE", "LOCAL_RANK"]),
            (
                Launcher::OpenMpi,
                ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
            ),
            (Launcher::Slurm, ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"]),
            (Launcher::Mpich, ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"]),
        ];
        let is_set = |(launcher, [rank, size, _]): &(Launcher, [&str; 3])| {
            // A batch script and a shell within a job have Slurm's numbers, too, but are no step.
            let is_step = *launcher != Launcher::Slurm || get("SLURM_STEP_ID").is_some();
            is_step && get(rank).is_some() && get(size).is_some()
        };
        let Some((launcher, [name, size, local])) = found.into_iter().find(is_set) else {
            return Ok(Self::solo());
        };
        let (rank, world_size): (usize, usize) = (env.need(name)?, env.need(size)?);
        if rank >= world_size {
            return Err(Error::Option {
                flag: format!("{name} in the environment"),
                got: format!("rank {rank} of {world_size}"),
                expected: "a rank below the number of ranks".into(),
            });
        }
        if world_size == 1 {
            return Ok(Self { launcher, ..Self::solo() });
        }
        let attempt = ["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"].map(get);
        Ok(Self {
            launcher,
            rank,
            world_size,
            local_rank: env.number(local)?.unwrap_or(0),
            master: master(&env, launcher, world_size)?,
            agent_store: get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v == "True"),
            attempt: attempt.into_iter().flatten().collect::<Vec<_>>().join("/"),
        })
    }
}

struct Env<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Env<'_> {
    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = (self.0)(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Error::Option {
            flag: format!("{name} in the environment"),
            got: format!("{text:?}"),
            expected: "a number".into(),
        })
    }

    fn need<T: std::str::FromStr>(&self, name: &str) -> Result<T> {
        let missing = || Error::Option {
            flag: format!("{name} in the environment"),
            got: "nothing".into(),
            expected: "a number".into(),
        };
        self.number(name)?.ok_or_else(missing)
    }
}

/// Where rank 0 can be met: as said, else the first machine of Slurm's step, else this one if all
/// ranks are here.
fn master(env: &Env<'_>, launcher: Launcher, world_size: usize) -> Result<Option<(String, u16)>> {
    let get = env.0;
    let said: Option<u16> = env.number("MASTER_PORT")?;
    if let Some(host) = get("MASTER_ADDR") {
        return Ok(Some((host, said.unwrap_or(PORT))));
    }
    let here = match launcher {
        Launcher::Slurm => {
            let nodes = get("SLURM_STEP_NODELIST").or_else(|| get("SLURM_JOB_NODELIST"));
            // Jobs that share a machine must not meet each other.
            let job: u64 = env.number("SLURM_JOB_ID")?.unwrap_or(0);
            let port = said.unwrap_or(PORT + (job % 1000) as u16);
            return Ok(nodes.map(|nodes| (first_host(&nodes), port)));
        }
        Launcher::OpenMpi => env.number("OMPI_COMM_WORLD_LOCAL_SIZE")? == Some(world_size),
        Launcher::Mpich => env.number("MPI_LOCALNRANKS")? == Some(world_size),
        Launcher::Shell | Launcher::Torchrun => false,
    };
    Ok(here.then(|| ("127.0.0.1".into(), said.unwrap_or(PORT))))
}

/// The first machine of Slurm's short form: `gpu[07-09,12],login` is `gpu07`.
fn first_host(nodes: &str) -> String {
    let end = nodes.find(['[', ',']).unwrap_or(nodes.len());
    let Some(list) = nodes[end..].strip_prefix('[') else { return nodes[..end].into() };
    let first = list.split([',', '-', ']']).next().unwrap_or_default();
    let behind = list.split_once(']').map_or("", |(_, behind)| behind);
    let behind = behind.split(',').next().unwrap_or_default();
    // More brackets: machines numbered by two numbers.
    first_host(&format!("{}{first}{behind}", &nodes[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(variables: &[(&str, &str)]) -> Result<Launch> {
        Launch::read(&|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn rank_of(variables: &[(&str, &str)]) -> (Launcher, usize, usize, usize) {
        let Launch { launcher, rank, world_size, local_rank, .. } = told(variables).unwrap();
        (launcher, rank, world_size, local_rank)
    }

    /// As they really come: from torchrun 2.9, Open MPI 4.1, MPICH 4.0 and Slurm 23.
    #[test]
    fn each_launcher_is_known_by_its_variables() {
        let torchrun = [
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "node1"),
            ("MASTER_PORT", "29400"),
            ("TORCHELASTIC_RUN_ID", "77"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            // torchrun was started by srun.
            ("SLURM_PROCID", "1"),
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_STEP_ID", "0"),
        ];
        assert_eq!(rank_of(&torchrun), (Launcher::Torchrun, 3, 4, 1));
        let launch = told(&torchrun).unwrap();
        assert_eq!(launch.master, Some(("node1".into(), 29400)));
        assert!(launch.agent_store && launch.attempt == "77/2");
        let mpirun = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        assert_eq!(rank_of(&mpirun), (Launcher::OpenMpi, 1, 2, 1));
        assert_eq!(told(&mpirun).unwrap().master, Some(("127.0.0.1".into(), 29500)));
        let mpiexec = [
            ("PMI_RANK", "1"),
            ("PMI_SIZE", "2"),
            ("MPI_LOCALRANKID", "0"),
            ("MPI_LOCALNRANKS", "1"),
        ];
        assert_eq!(rank_of(&mpiexec), (Launcher::Mpich, 1, 2, 0));
        assert_eq!(told(&mpiexec).unwrap().master, None, "two machines, and nobody says which");
        let srun = [
            ("SLURM_PROCID", "5"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_STEP_NODELIST", "gpu[07-08]"),
            ("SLURM_JOB_ID", "123456"),
        ];
        assert_eq!(rank_of(&srun), (Launcher::Slurm, 5, 8, 1));
        assert_eq!(told(&srun).unwrap().master, Some(("gpu07".into(), 29956)));
    }

    #[test]
    fn a_shell_within_a_job_is_alone() {
        let solo = (Launcher::Shell, 0, 1, 0);
        assert_eq!(rank_of(&[]), solo);
        let batch_script = [
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "8"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_JOB_ID", "1"),
        ];
        assert_eq!(rank_of(&batch_script), solo);
        let one_task =
            [("SLURM_PROCID", "0"), ("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "1")];
        assert_eq!(rank_of(&one_task), (Launcher::Slurm, 0, 1, 0));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let refused = |variables: &[(&str, &str)]| told(variables).unwrap_err().to_string();
        assert_eq!(
            refused(&[("RANK", "one"), ("WORLD_SIZE", "2")]),
            "RANK in the environment: \"one\"; expected a number"
        );
        assert_eq!(
            refused(&[("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "2")]),
            "OMPI_COMM_WORLD_RANK in the environment: rank 2 of 2; expected a rank below the \
             number of ranks"
        );
    }

    #[test]
    fn the_first_machine_of_a_list() {
        for (nodes, first) in [
            ("n1", "n1"),
            ("n1,n2", "n1"),
            ("gpu[07-09,12]", "gpu07"),
            ("gpu[12],login", "gpu12"),
            ("rack[1-2]n[03-04]-ib", "rack1n03-ib"),
            ("a-b[3,5].cluster", "a-b3.cluster"),
        ] {
            assert_eq!(first_host(nodes), first);
        }
    }
}
