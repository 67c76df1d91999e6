"""The table of scripts/kernel-resources.sh, from what scripts/kernels.sh leaves: the logs of ptxas and the cubins."""

import glob
import re
import struct
import subprocess
import sys

REGISTERS_OF_SM, WARP = 65536, 32
# Of a multiprocessor, by architecture: threads, blocks, bytes of shared memory.
SM = {
    "80": (2048, 32, 164 << 10),
    "86": (1536, 16, 100 << 10),
    "89": (1536, 24, 100 << 10),
    "90": (2048, 32, 228 << 10),
    "100": (2048, 32, 228 << 10),
    "120": (1536, 24, 100 << 10),
}
SHARED_OF_SYSTEM = 1 << 10  # in each block
LAUNCHES = "target/emulate/plain/kernels.tsv"
EIFMT_SVAL, EIATTR_MAX_THREADS, EIATTR_REQNTID = 4, 0x05, 0x10


def sections(elf):
    """Names and contents of the sections of a 64-bit ELF file."""
    table, count, names = (struct.unpack_from(f, elf, at)[0] for f, at in (("<Q", 0x28), ("<H", 0x3C), ("<H", 0x3E)))
    headers = [struct.unpack_from("<IIQQQQ", elf, table + 64 * i) for i in range(count)]
    text = headers[names][4]
    for name, kind, _, _, offset, size in headers:
        start = text + name
        yield elf[start : elf.index(b"\0", start)].decode(), elf[offset : offset + size] if kind != 8 else b""


def block_sizes(cubin):
    """The threads of a block, by kernel, as __launch_bounds__ states them."""
    sizes = {}
    for name, info in sections(cubin):
        if not name.startswith(".nv.info."):
            continue
        at = 0
        while at + 4 <= len(info):
            kind, attribute, size = struct.unpack_from("<BBH", info, at)
            at += 4
            if kind == EIFMT_SVAL:
                if attribute in (EIATTR_MAX_THREADS, EIATTR_REQNTID):
                    x, y, z = struct.unpack_from("<III", info, at)
                    sizes[name[len(".nv.info.") :]] = x * y * z
                at += size
    return sizes


def occupancy(arch, registers, threads, shared):
    """Per cent of the warps of a multiprocessor; registers are given to warps in units of 256."""
    warps = -(-threads // WARP)
    of_warp = -(-registers * WARP // 256) * 256
    all_threads, most_blocks, all_shared = SM.get(arch, SM["80"])
    by_shared = all_shared // (shared + SHARED_OF_SYSTEM)
    blocks = min(REGISTERS_OF_SM // (of_warp * warps), all_threads // threads, most_blocks, by_shared)
    return blocks * warps * 100 // (all_threads // WARP)


def dynamic_shared():
    """The most dynamic shared memory that a launch of the emulated tests asked for, by kernel; None without such tests."""
    try:
        lines = open(LAUNCHES).read().splitlines()
    except OSError:
        return None
    most = {}
    for name, size in (line.split("\t") for line in lines):
        name = name.removeprefix("collimate::").split("<")[0]
        most[name] = max(most.get(name, 0), int(size))
    return most


def enumerators():
    """Names of the values of the kernels' enums, by type: how a template argument prints."""
    names = {}
    for path in glob.glob("kernels/*.cu*"):
        for name, body in re.findall(r"enum class (\w+)[^{]*\{([^}]*)\}", open(path).read()):
            names[name] = [value.split("=")[0].strip() for value in body.split(",") if value.strip()]
    return names


def readable(names):
    """Demangled, without parameters, with the short names of element types."""
    text = subprocess.run(["c++filt"], input="\n".join(names), text=True, capture_output=True, check=True).stdout
    enums, short = enumerators(), {}

    def enumerator(found):
        values = enums.get(found[1], [])
        return values[int(found[2])] if int(found[2]) < len(values) else found[0]

    for name, full in zip(names, text.splitlines()):
        full = re.sub(r"\(collimate::[\w:]*?(\w+)\)(\d+)", enumerator, full).split("(")[0]
        full = full.replace("void ", "").replace("collimate::", "")
        short[name] = full.replace("__nv_bfloat16", "bf16").replace("__half", "f16").replace("float", "f32")
    return short


def kernels(folder):
    for log in sorted(glob.glob(f"{folder}/*.log")):
        sizes = {}
        for cubin in glob.glob(f"{log.removesuffix('.log')}/*.cubin"):
            with open(cubin, "rb") as file:
                sizes |= block_sizes(file.read())
        name = arch = stack = None
        for line in open(log):
            if found := re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", line):
                name, arch = found.groups()
            elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
                stack = [int(x) for x in found.groups()]
            elif name and (found := re.search(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?", line)):
                registers, shared = int(found[1]), int(found[2] or 0)
                yield name, arch, registers, shared, stack[0], stack[1] + stack[2], sizes.get(name)
                name = None


def span(values):
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} - {high}"


def main():
    rows = list(kernels(sys.argv[1]))
    short = readable([row[0] for row in rows])
    archs = sorted({row[1] for row in rows}, key=int)
    failures = [] if rows else ["no kernel was compiled"]
    launched = dynamic_shared()
    table = {}
    for name, arch, registers, shared, stack, spilled, threads in rows:
        if threads is None:
            failures.append(f"{short[name]}: no __launch_bounds__")
            continue
        if spilled:
            failures.append(f"{short[name]} spills {spilled} bytes on sm_{arch}")
        key = short[name] if "--instances" in sys.argv else short[name].split("<")[0]
        dynamic = (launched or {}).get(short[name].split("<")[0], 0)
        row = (registers, occupancy(arch, registers, threads, shared + dynamic), shared, dynamic, stack, spilled, threads)
        table.setdefault(key, {}).setdefault(arch, []).append(row)
    heads = [f"{what}, sm_{arch}" for arch in archs for what in ("registers", "occupancy %")]
    heads = ["kernel", "instances", "threads", *heads, "static shared B", "dynamic shared B", "stack B", "spilled B"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for key, by_arch in sorted(table.items()):
        all_rows = [row for instances in by_arch.values() for row in instances]
        cells = [key, str(len(by_arch[archs[0]])), span([row[6] for row in all_rows])]
        for arch in archs:
            cells += [span([row[i] for row in by_arch[arch]]) for i in (0, 1)]
        cells += [span([row[i] for row in all_rows]) for i in (2, 3, 4, 5)]
        print("| " + " | ".join(cells) + " |")
    if launched is None:
        print("\nDynamic shared memory is not known: scripts/emulate-test.sh plain writes it.")
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


main()
