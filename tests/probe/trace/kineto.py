"""Traces of a GPU made by hand, in the shapes of Kineto as of torch 2.11 to 2.13 on CUDA 12.

The shapes follow libkineto's ``output_json.cpp`` and ``CuptiActivity.h``: calls and kernels carry
the "External id" of the operator around the launch, and none where there is none (CUDA graphs);
all kernels of a graph carry the correlation of its launch.
"""

from __future__ import annotations

CPU, GPU, STREAM = 4242, 0, 7
BASE_US = 4_553_758_961_000.0  # since baseTimeNanoseconds: as large as on a real host

GEMM = "nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNN"
NORM = (
    "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float, "
    "false>(int, float, c10::BFloat16 const*, c10::BFloat16 const*, c10::BFloat16 const*, float*, "
    "float*, c10::BFloat16*)"
)
FLASH = (
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, false, false, "
    "cutlass::bfloat16_t, Flash_kernel_traits<128, 128, 64, 4, cutlass::bfloat16_t> >, false, "
    "true, false, false, false, true, false, false>(pytorch_flash::Flash_fwd_params)"
)
ADD = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, "
    "std::array<char*, 3ul> >(int, at::native::CUDAFunctor_add<float>, std::array<char*, 3ul>)"
)
TRITON = "triton_poi_fused_mul_silu_3"


class Kineto:
    """Collects events; times are microseconds from the start of the recording."""

    def __init__(self):
        self.events = []
        self._external = 0

    def _add(self, category, name, pid, tid, start, duration, **args):
        place = {"ph": "X", "cat": category, "name": name, "pid": pid, "tid": tid}
        times = {"ts": round(BASE_US + start, 3), "dur": round(float(duration), 3)}
        self.events.append({**place, **times, "args": args})

    def op(self, name, start, end, *, tid=CPU, category="cpu_op"):
        self._external += 1
        args = {"External id": self._external, "Record function id": 0, "Ev Idx": self._external}
        self._add(category, name, CPU, tid, start, end - start, **args)
        return self._external

    def range(self, name, start, end, *, tid=CPU):
        return self.op(name, start, end, tid=tid, category="user_annotation")

    def gpu_range(self, name, start, end, external=0, *, stream=STREAM):
        # a nanosecond earlier and later, as Kineto does for viewers
        args = {"External id": external}
        category = "gpu_user_annotation"
        self._add(category, name, GPU, stream, start - 0.001, end - start + 0.002, **args)

    def call(self, name, start, end, correlation, external=None, *, tid=CPU):
        category = "cuda_runtime" if name.startswith("cuda") else "cuda_driver"
        args = {} if external is None else {"External id": external}
        args |= {"cbid": 211, "correlation": correlation}
        self._add(category, name, CPU, tid, start, end - start, **args)
        self._flow("s", CPU, tid, start, correlation)

    def kernel(self, name, start, end, correlation, external=None, *, stream=STREAM, **more):
        args = {} if external is None else {"External id": external}
        args |= {"queued": 0, "device": GPU, "context": 1, "stream": stream}
        args |= {"correlation": correlation, "registers per thread": 168, "shared memory": 213_016}
        args |= {"blocks per SM": 1.0, "warps per SM": 12.0, "grid": [132, 1, 1]}
        args |= {"block": [384, 1, 1], "est. achieved occupancy %": 19}
        args |= {"graph id": 0, "graph node id": 0}
        self._add("kernel", name, GPU, stream, start, end - start, **(args | more))
        self._flow("f", GPU, stream, start, correlation)

    def copy(self, name, start, end, correlation, size, external=None, *, stream=STREAM):
        category = "gpu_memset" if name.startswith("Memset") else "gpu_memcpy"
        args = {} if external is None else {"External id": external}
        args |= {"device": GPU, "context": 1, "stream": stream, "correlation": correlation}
        args |= {"bytes": size, "memory bandwidth (GB/s)": size / (end - start) / 1e3}
        self._add(category, name, GPU, stream, start, end - start, **args)
        self._flow("f", GPU, stream, start, correlation)

    def _flow(self, phase, pid, tid, start, number):
        flow = {"ph": phase, "id": number, "pid": pid, "tid": tid, "ts": BASE_US + start}
        end = {"bp": "e"} if phase == "f" else {}
        self.events.append({**flow, "cat": "ac2g", "name": "ac2g", **end})

    def trace(self):
        """The whole object, with what Kineto puts around the events."""
        device = {"id": 0, "name": "NVIDIA H200", "totalGlobalMem": 150_000_000_000}
        device |= {"computeMajor": 9, "computeMinor": 0, "maxThreadsPerBlock": 1024}
        device |= {"maxThreadsPerMultiprocessor": 2048, "regsPerBlock": 65536, "warpSize": 32}
        device |= {"sharedMemPerBlock": 49152, "numSms": 132}
        end_us = max(event["ts"] + event.get("dur", 0) for event in self.events)
        span = {"ph": "X", "cat": "Trace", "ts": BASE_US - 1, "dur": end_us - BASE_US + 2}
        span |= {"pid": "Spans", "tid": "PyTorch Profiler", "name": "PyTorch Profiler (0)"}
        start = {"name": "Iteration Start: PyTorch Profiler", "ph": "i", "s": "g"}
        start |= {"pid": "Traces", "tid": "Trace PyTorch Profiler", "ts": BASE_US - 1}
        end = {"name": "Record Window End", "ph": "i", "s": "g", "pid": "", "tid": ""}
        return {
            "schemaVersion": 1,
            "deviceProperties": [device],
            "cupti_version": 26,
            "cuda_runtime_version": 12080,
            "displayTimeUnit": "ms",
            "baseTimeNanoseconds": 1_790_857_026_000_000_000,
            "traceEvents": [
                *(_process(pid, name) for pid, name in ((CPU, "python"), (GPU, "GPU 0"))),
                *self.events,
                {**span, "args": {"Op count": 0}},
                start,
                {**end, "ts": end_us + 2},
            ],
            "traceName": "/tmp/trace.json",
        }


def _process(pid, name):
    place = {"ph": "M", "name": "process_name", "ts": BASE_US - 1, "pid": pid, "tid": 0}
    return {**place, "args": {"name": name}}


def generation():
    """A vision stage and one decode step, 1500 us long; every number can be checked by hand.

    GPU, stream 7 (us): addmm 100-200, norm 210-230, flash 260-360, copy 360-380, then of a graph
    gemm 650-750, add 752-772, norm 772-800, then copy back 900-904, and a Triton kernel 1180-1200.
    """
    made = Kineto()
    vision = made.range("stage: vision", 0, 400)
    made.op("aten::linear", 10, 110)
    addmm = made.op("aten::addmm", 20, 100)
    made.call("cudaLaunchKernelExC", 80, 90, 101, addmm)
    made.kernel(GEMM, 100, 200, 101, addmm)
    made.op("aten::layer_norm", 120, 160)
    norm = made.op("aten::native_layer_norm", 125, 155)
    made.call("cudaLaunchKernel", 140, 146, 102, norm)
    made.kernel(NORM, 210, 230, 102, norm, **{"est. achieved occupancy %": 80})
    made.op("aten::scaled_dot_product_attention", 170, 250)
    flash = made.op("aten::_flash_attention_forward", 180, 240)
    made.call("cudaLaunchKernel", 220, 228, 103, flash)
    made.kernel(FLASH, 260, 360, 103, flash)
    copy = made.op("aten::copy_", 260, 290)
    made.call("cudaMemcpyAsync", 270, 280, 104, copy)
    made.copy("Memcpy HtoD (Pinned -> Device)", 360, 380, 104, 1_000_000, copy)
    made.gpu_range("stage: vision", 100, 380, vision)

    made.range("stage: decode", 500, 1500)
    step = made.range("stage: decode/step", 510, 1400)
    made.call("cudaGraphLaunch", 600, 700, 105)
    for node, (name, start, end) in enumerate(
        [(GEMM, 650, 750), (ADD, 752, 772), (NORM, 772, 800)]
    ):
        made.kernel(name, start, end, 105, **{"graph id": 4, "graph node id": node})
    made.op("aten::item", 800, 1100)
    item = made.op("aten::_local_scalar_dense", 805, 1095)
    made.call("cudaMemcpyAsync", 810, 820, 106, item)
    made.call("cudaStreamSynchronize", 825, 1090, 107, item)
    made.copy("Memcpy DtoH (Device -> Pinned)", 900, 904, 106, 8, item)
    made.range("Torch-Compiled Region: 0/0", 1120, 1200)
    made.call("cuLaunchKernel", 1150, 1160, 108)
    made.kernel(TRITON, 1180, 1200, 108, **{"blocks per SM": "inf", "warps per SM": "inf"})
    made.gpu_range("stage: decode/step", 650, 1200, step)
    return made.trace()


def processor():
    """Two stages on a machine without a GPU."""
    made = Kineto()
    made.range("stage: vision", 0, 100)
    made.op("aten::linear", 10, 60)
    made.op("aten::addmm", 20, 50)
    made.range("stage: decode", 200, 300)
    made.op("aten::linear", 210, 230)
    return made.trace()
