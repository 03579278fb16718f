"""What is ours on a node, read from pictures of nodes: files below a temporary root, variables in a dict."""

from pathlib import Path

import pytest

from lfm_worker.shell import offer
from lfm_worker.shell.allotment import clock, time_left
from lfm_worker.shell.detect import Allotment, Node, detect, margin

GB, GIB, MIB = 10**9, 1 << 30, 1 << 20


def look(root: Path, files: dict[str, str] | None = None, *, affinity: int = 16, **environ: str) -> Allotment:
    """A machine with 16 CPUs and 64 GiB."""
    for name, text in (files or {}).items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    node = Node(
        environ=environ, root=root, host="node7.cluster", affinity=tuple(range(affinity)), cpus=16, memory=64 * GIB,
        rlimits=(), commands=False,
    )  # fmt: skip
    return detect(node, work_dir=root)


def test_a_bare_machine_is_all_ours(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert (found.cores.value, found.memory.value, found.gpus, found.time_left) == (16, 64 * GIB, (), None)
    assert found.job.system == ""


def test_the_affinity_counts(tmp_path: Path) -> None:
    found = look(tmp_path, affinity=3)
    assert (found.cores.value, found.cores.source) == (3, "affinity")


def test_a_limit_on_an_ancestor_cgroup_of_version_2(tmp_path: Path) -> None:
    files = {
        "/proc/self/cgroup": "0::/slurm/job_1/step_0/task_0",
        "/sys/fs/cgroup/slurm/job_1/step_0/task_0/memory.max": "max",
        "/sys/fs/cgroup/slurm/job_1/step_0/task_0/cpu.max": "max 100000",
        "/sys/fs/cgroup/slurm/job_1/memory.max": str(4 * GIB),
        "/sys/fs/cgroup/slurm/memory.high": str(8 * GIB),
        "/sys/fs/cgroup/slurm/job_1/cpu.max": "250000 100000",
    }
    found = look(tmp_path, files)
    assert (found.memory.value, found.cores.value) == (4 * GIB, 2.5)
    assert found.memory.source == "/sys/fs/cgroup/slurm/job_1/memory.max"


def test_version_1_with_its_unlimited_number(tmp_path: Path) -> None:
    files = {
        "/proc/self/cgroup": "5:memory:/job/step/task\n3:cpu,cpuacct:/job\n1:name=systemd:/",
        "/sys/fs/cgroup/memory/job/step/task/memory.limit_in_bytes": "9223372036854771712",
        "/sys/fs/cgroup/memory/job/step/memory.limit_in_bytes": str(300 * MIB),
        "/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "400000",
        "/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
    }
    found = look(tmp_path, files)
    assert (found.memory.value, found.cores.value) == (300 * MIB, 4)


def test_in_a_container_our_path_leads_outside_and_the_root_is_ours(tmp_path: Path) -> None:
    files = {
        "/proc/self/cgroup": "0::/kubepods/pod1/abc",
        "/sys/fs/cgroup/memory.max": str(2 * GIB),
        "/sys/fs/cgroup/cpu.max": "200000 100000",
    }
    found = look(tmp_path, files, KUBERNETES_SERVICE_HOST="10.0.0.1", HOSTNAME="lfm-worker-x1")
    assert (found.memory.value, found.cores.value) == (2 * GIB, 2)
    assert (found.job.system, found.job.id) == ("kubernetes", "lfm-worker-x1")


class TestSlurm:
    def test_a_batch_script(self, tmp_path: Path) -> None:
        found = look(
            tmp_path, SLURM_JOB_ID="17", SLURM_CPUS_ON_NODE="4", SLURM_CPUS_PER_TASK="2", SLURM_MEM_PER_NODE="2048",
            CUDA_VISIBLE_DEVICES="1,3", SLURM_JOB_END_TIME="99999999999",
        )  # fmt: skip
        assert (found.cores.value, found.memory.value, found.gpus) == (4, 2 * GIB, ("1", "3"))
        assert found.job.id == "17" and found.time_left is not None and found.time_left.value > 3600

    def test_a_step_has_its_tasks_share(self, tmp_path: Path) -> None:
        found = look(tmp_path, SLURM_JOB_ID="17", SLURM_STEP_ID="0", SLURM_CPUS_ON_NODE="8", SLURM_CPUS_PER_TASK="2")
        assert found.cores.value == 2

    def test_several_workers_in_one_step_share_the_node(self, tmp_path: Path) -> None:
        found = look(
            tmp_path, SLURM_JOB_ID="17", SLURM_STEP_ID="0", SLURM_CPUS_ON_NODE="8", SLURM_MEM_PER_NODE="8000",
            SLURM_STEP_TASKS_PER_NODE="4(x2)", SLURM_NODEID="1",
        )  # fmt: skip
        assert (found.cores.value, found.memory.value) == (2, 2000 * MIB)

    def test_a_requeued_array_task_has_a_name_of_its_own(self, tmp_path: Path) -> None:
        found = look(tmp_path, SLURM_JOB_ID="19", SLURM_ARRAY_JOB_ID="17", SLURM_ARRAY_TASK_ID="2", SLURM_RESTART_COUNT="1")
        assert found.job.id == "17_2r1"

    def test_no_gpu_was_given_where_none_is_named(self, tmp_path: Path) -> None:
        assert look(tmp_path, {"/dev/nvidia0": ""}, SLURM_JOB_ID="17").gpus == ()


def test_pbs(tmp_path: Path) -> None:
    found = look(tmp_path, PBS_JOBID="12.server", NCPUS="6", PBS_WALLTIME="7200")
    assert (found.cores.value, found.job.id) == (6, "12.server")
    assert found.time_left is not None and found.time_left.value == 7200


def test_lsf_counts_this_host_only(tmp_path: Path) -> None:
    found = look(tmp_path, LSB_JOBID="5", LSB_JOBINDEX="2", LSB_MCPU_HOSTS="node3 8 node7 5")
    assert (found.cores.value, found.job.id) == (5, "5[2]")


def test_htcondor_reads_its_ads(tmp_path: Path) -> None:
    ads = {
        "/ads/machine": 'Cpus = 4\nMemory = 8192\nAssignedGPUs = "CUDA0, CUDA1"',
        "/ads/job": "ClusterId = 9\nProcId = 3",
    }
    found = look(tmp_path, ads, _CONDOR_MACHINE_AD="/ads/machine", _CONDOR_JOB_AD="/ads/job")
    assert (found.cores.value, found.memory.value, found.gpus) == (4, 8 * GIB, ("CUDA0", "CUDA1"))
    assert found.job.id == "9.3"


def test_sge_and_flux(tmp_path: Path) -> None:
    assert look(tmp_path, SGE_TASK_ID="undefined", JOB_ID="7", NSLOTS="3").cores.value == 3
    assert look(tmp_path, FLUX_JOB_ID="f1", SLURM_JOB_ID="17").job.system == "flux"


def test_devices_of_a_bare_machine(tmp_path: Path) -> None:
    found = look(tmp_path, {"/dev/nvidia1": "", "/dev/nvidia0": "", "/dev/nvidiactl": ""})
    assert found.gpus == ("0", "1")


@pytest.mark.parametrize(
    "value, devices", [("", ()), ("-1", ()), ("NoDevFiles", ()), ("0,2", ("0", "2")), ("GPU-ab", ("GPU-ab",))]
)
def test_visible_devices(tmp_path: Path, value: str, devices: tuple[str, ...]) -> None:
    assert look(tmp_path, {"/dev/nvidia0": ""}, CUDA_VISIBLE_DEVICES=value).gpus == devices


@pytest.mark.parametrize(
    "text, seconds", [("10:00", 600), ("1:00:01", 3601), ("2-00:00:00", 172800), ("UNLIMITED", None), ("", None)]
)
def test_slurms_clock(text: str, seconds: float | None) -> None:
    assert clock(text) == seconds


QSTAT = "  Resource_List.walltime = 02:00:00\n  resources_used.walltime = 00:30:00\n"


@pytest.mark.parametrize(
    "command, output, seconds",
    [
        (("squeue",), "59:30\n", 3570),
        (("flux", "job", "timeleft"), "120\n", 120),
        (("bjobs",), "1:30 L\n", 5400),
        (("bjobs",), "-\n", None),
        (("qstat",), QSTAT, 5400),
        (("qstat",), "nothing", None),
    ],
)
def test_what_batch_systems_commands_say(command: tuple[str, ...], output: str, seconds: float | None) -> None:
    assert time_left(command, output) == seconds


class TestOffer:
    def test_memory_leaves_a_margin_and_cores_are_exact(self, tmp_path: Path) -> None:
        settings, warnings = offer.settings(look(tmp_path, affinity=4), offer.Wanted())
        assert settings.offer.cores == 4 and settings.cpus == (0, 1, 2, 3)
        assert settings.offer.memory == 64 * GIB - margin(64 * GIB)
        assert settings.end is None and not warnings

    @pytest.mark.parametrize("total, kept", [(300 * MIB, 75 * MIB), (2 * GIB, 256 * MIB), (100 * GIB, 5 * GIB)])
    def test_margin(self, total: int, kept: int) -> None:
        assert margin(total) == kept

    def test_what_was_asked_is_taken_and_too_much_is_said(self, tmp_path: Path) -> None:
        settings, warnings = offer.settings(look(tmp_path), offer.Wanted(cores=32, memory=GB, gpus=1))
        assert (settings.offer.cores, settings.offer.memory, settings.cpus) == (32, GB, ())
        assert [w.split()[1] for w in warnings] == ["32", "0"]

    def test_half_a_core_is_still_one_to_offer(self, tmp_path: Path) -> None:
        found = look(tmp_path, {"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/cpu.max": "50000 100000"})
        settings, warnings = offer.settings(found, offer.Wanted())
        assert settings.offer.cores == 1 and not warnings

    def test_the_shorter_time_wins_and_leaves_room_to_drain(self, tmp_path: Path) -> None:
        found = look(tmp_path, PBS_JOBID="1", PBS_WALLTIME="7200")
        settings, _ = offer.settings(found, offer.Wanted(time_left=600))
        assert settings.offer.wall_time == 600 and settings.margin == 60
