// Source  bpf(2), bpf-helpers(7), include/linux/bpf.h, lib/percpu_counter.c; tested on 6.18
// Rule    A program of type SYSCALL (Linux 5.14) runs when it is asked to (BPF_PROG_RUN), in the task that asks, and
//         shares its context, which it may write, with the caller.
// Rule    bpf_probe_read_kernel() gives an error where no memory is, instead of a fault. It is for programs whose
//         licence goes with the GPL, and not to be had where the kernel is locked down for confidentiality
//         (kernel_lockdown(7)).
// Rule    A processor's own variable lies at its address plus an offset, which is the same for all variables. Of an
//         element of a per-processor BPF array both addresses can be had: the one in the map is in struct bpf_array,
//         the one that it has on a processor is given by bpf_map_lookup_percpu_elem() (Linux 5.19).
#include "engine/base/kernel_memory.h"

#include <fcntl.h>
#include <linux/bpf.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/io.h"

namespace stasis {
namespace {

constexpr std::uint32_t kWindowBytes = 16384;
constexpr int kTooMuch = -1;

// What a program and we tell each other.
struct Context {
  std::uint64_t address, size;
  std::uint64_t result;
};

using Instruction = bpf_insn;

constexpr Instruction Make(int code, unsigned to, unsigned from, int offset, std::int32_t value) {
  return {.code = static_cast<std::uint8_t>(code),
          .dst_reg = static_cast<std::uint8_t>(to & 15),
          .src_reg = static_cast<std::uint8_t>(from & 15),
          .off = static_cast<std::int16_t>(offset),
          .imm = value};
}
constexpr Instruction Move(unsigned to, unsigned from) {
  return Make(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0);
}
constexpr Instruction Set(unsigned to, std::int32_t value) {
  return Make(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value);
}
constexpr Instruction LoadWord(unsigned to, unsigned from, std::size_t offset) {
  return Make(BPF_LDX | BPF_MEM | BPF_DW, to, from, static_cast<int>(offset), 0);
}
constexpr Instruction StoreWord(unsigned to, std::size_t offset, unsigned from) {
  return Make(BPF_STX | BPF_MEM | BPF_DW, to, from, static_cast<int>(offset), 0);
}
constexpr Instruction CallHelper(int function) {
  return Make(BPF_JMP | BPF_CALL, 0, 0, 0, function);
}
constexpr Instruction kExit = Make(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
// A map, or its content, which takes two instructions.
constexpr Instruction LoadMap(unsigned to, unsigned kind, int fd) {
  return Make(BPF_LD | BPF_DW | BPF_IMM, to, kind, 0, fd);
}
constexpr Instruction kSecondHalf = Make(0, 0, 0, 0, 0);

std::uint64_t AddressIn(const void* at) { return reinterpret_cast<std::uint64_t>(at); }

Result<int> Bpf(int command, bpf_attr& attributes, const char* what) {
  const long result = ::syscall(SYS_bpf, command, &attributes, sizeof(attributes));
  if (result >= 0) return static_cast<int>(result);
  const Status status = SyscallError(errno, what);
  if (ErrnoOf(status) == EPERM) {
    return PermissionDenied("reading the kernel's memory takes CAP_BPF and CAP_PERFMON (" +
                            Message(status) + ")");
  }
  if (ErrnoOf(status) == ENOSYS) return FailedPrecondition("this kernel has no BPF");
  return status;
}

Result<UniqueFd> MakeMap(bpf_map_type type, std::uint32_t value_bytes, std::uint32_t flags) {
  bpf_attr attributes = {};
  attributes.map_type = type;
  attributes.key_size = sizeof(std::uint32_t);
  attributes.value_size = value_bytes;
  attributes.max_entries = 1;
  attributes.map_flags = flags;
  ASSIGN_OR_RETURN(const int fd, Bpf(BPF_MAP_CREATE, attributes, "BPF_MAP_CREATE"));
  return UniqueFd(fd);
}

Result<UniqueFd> LoadProgram(std::span<const Instruction> instructions) {
  bpf_attr attributes = {};
  attributes.prog_type = BPF_PROG_TYPE_SYSCALL;
  attributes.insns = AddressIn(instructions.data());
  attributes.insn_cnt = static_cast<std::uint32_t>(instructions.size());
  attributes.license = AddressIn("Dual MIT/GPL");
  attributes.prog_flags = BPF_F_SLEEPABLE;
  ASSIGN_OR_RETURN(const int fd, Bpf(BPF_PROG_LOAD, attributes, "BPF_PROG_LOAD"));
  return UniqueFd(fd);
}

// What the program returns.
Result<int> Run(int program, Context& context) {
  bpf_attr attributes = {};
  attributes.test.prog_fd = static_cast<std::uint32_t>(program);
  attributes.test.ctx_in = AddressIn(&context);
  attributes.test.ctx_size_in = sizeof(context);
  RETURN_IF_ERROR(Bpf(BPF_PROG_TEST_RUN, attributes, "BPF_PROG_RUN").status());
  return static_cast<int>(attributes.test.retval);
}

// "0-3,5" of /sys.
Result<std::vector<std::uint32_t>> PossibleProcessors() {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFileAt(AT_FDCWD, "/sys/devices/system/cpu/possible"));
  std::vector<std::uint32_t> processors;
  const char *at = text.data(), *const end = text.data() + text.size();
  while (at < end && *at >= '0' && *at <= '9') {
    std::uint32_t first = 0;
    at = std::from_chars(at, end, first).ptr;
    std::uint32_t last = first;
    if (at < end && *at == '-') at = std::from_chars(at + 1, end, last).ptr;
    for (std::uint32_t i = first; i <= last; ++i) processors.push_back(i);
    if (at < end && *at == ',') ++at;
  }
  if (processors.empty()) return DataLoss("/sys/devices/system/cpu/possible is \"" + text + "\"");
  return processors;
}

}  // namespace

Result<KernelMemory> KernelMemory::Open() {
  ASSIGN_OR_RETURN(std::shared_ptr<const KernelBtf> btf, KernelBtf::Running());
  KernelMemory memory(std::move(btf));
  RETURN_IF_ERROR(memory.Load());
  return memory;
}

KernelMemory::KernelMemory(KernelMemory&& other) noexcept
    : btf_(std::move(other.btf_)),
      fields_(std::move(other.fields_)),
      window_map_(std::move(other.window_map_)),
      processor_map_(std::move(other.processor_map_)),
      reader_(std::move(other.reader_)),
      processor_finder_(std::move(other.processor_finder_)),
      window_(std::exchange(other.window_, nullptr)),
      offsets_(std::move(other.offsets_)) {}

KernelMemory::~KernelMemory() {
  if (window_ != nullptr) ::munmap(window_, kWindowBytes);
}

Status KernelMemory::Load() {
  ASSIGN_OR_RETURN(window_map_, MakeMap(BPF_MAP_TYPE_ARRAY, kWindowBytes, BPF_F_MMAPABLE));
  void* const window = ::mmap(nullptr, kWindowBytes, PROT_READ, MAP_SHARED, window_map_.get(), 0);
  if (window == MAP_FAILED) return SyscallError(errno, "mmap of a BPF map");
  window_ = window;
  const auto reader = std::to_array<Instruction>({
      Move(6, 1),
      CallHelper(BPF_FUNC_get_current_task),
      StoreWord(6, offsetof(Context, result), 0),
      LoadWord(3, 6, offsetof(Context, address)),
      LoadWord(2, 6, offsetof(Context, size)),
      Set(0, kTooMuch),
      Make(BPF_JMP | BPF_JGT | BPF_K, 2, 0, 3, kWindowBytes),  // over the next three
      LoadMap(1, BPF_PSEUDO_MAP_VALUE, window_map_.get()),
      kSecondHalf,
      CallHelper(BPF_FUNC_probe_read_kernel),
      kExit,
  });
  ASSIGN_OR_RETURN(reader_, LoadProgram(reader));
  ASSIGN_OR_RETURN(processor_map_, MakeMap(BPF_MAP_TYPE_PERCPU_ARRAY, sizeof(std::uint64_t), 0));
  const auto finder = std::to_array<Instruction>({
      Move(6, 1),
      LoadWord(3, 6, offsetof(Context, address)),  // the processor's number
      Set(0, 0),
      StoreWord(10, static_cast<std::size_t>(-8), 0),
      Move(2, 10),
      Make(BPF_ALU64 | BPF_ADD | BPF_K, 2, 0, 0, -8),
      LoadMap(1, BPF_PSEUDO_MAP_FD, processor_map_.get()),
      kSecondHalf,
      CallHelper(BPF_FUNC_map_lookup_percpu_elem),
      StoreWord(6, offsetof(Context, result), 0),
      Set(0, 0),
      kExit,
  });
  ASSIGN_OR_RETURN(processor_finder_, LoadProgram(finder));
  return OkStatus();
}

Status KernelMemory::Read(KernelAddress address, std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const std::size_t some = std::min<std::size_t>(bytes.size(), kWindowBytes);
    Context context = {.address = address, .size = some, .result = 0};
    ASSIGN_OR_RETURN(const int result, Run(reader_.get(), context));
    if (result != 0) return NotFound("the kernel has no memory there");
    std::memcpy(bytes.data(), window_, some);
    bytes = bytes.subspan(some);
    address += some;
  }
  return OkStatus();
}

Result<KernelAddress> KernelMemory::Current() {
  Context context = {.address = 0, .size = 0, .result = 0};
  RETURN_IF_ERROR(Run(reader_.get(), context).status());
  return context.result;
}

Result<KernelBtf::Field> KernelMemory::Field(std::string_view structure, std::string_view path) {
  const std::string name = std::string(structure) + "." + std::string(path);
  const auto known = fields_.find(name);
  if (known != fields_.end()) return known->second;
  if (btf_ == nullptr) return Internal(name + " was not asked for before");
  ASSIGN_OR_RETURN(const KernelBtf::Field field, btf_->Find(structure, path));
  fields_.emplace(name, field);
  return field;
}

bool KernelMemory::Has(std::string_view structure, std::string_view path) {
  return Field(structure, path).ok();
}

Result<std::uint64_t> KernelMemory::Number(KernelAddress address, std::string_view structure,
                                           std::string_view path) {
  ASSIGN_OR_RETURN(const KernelBtf::Field field, Field(structure, path));
  std::uint64_t value = 0;
  const std::uint32_t bits = field.shift + field.bits;
  const std::uint32_t size = field.bits == 0 ? field.size : (bits + 7) / 8;
  if (size == 0 || size > sizeof(value)) {
    return Internal(std::string(structure) + "." + std::string(path) + " is no number");
  }
  RETURN_IF_ERROR(
      Read(address + field.offset, std::as_writable_bytes(std::span(&value, 1)).first(size)));
  if (field.bits == 0) return value;
  const std::uint64_t mask = field.bits >= 64 ? ~std::uint64_t{0} : (1ull << field.bits) - 1;
  return value >> field.shift & mask;
}

Result<KernelAddress> KernelMemory::AddressOf(KernelAddress address, std::string_view structure,
                                              std::string_view path) {
  ASSIGN_OR_RETURN(const KernelBtf::Field field, Field(structure, path));
  return address + field.offset;
}

Result<KernelAddress> KernelMemory::FileOf(int fd) {
  ASSIGN_OR_RETURN(const KernelAddress task, Current());
  ASSIGN_OR_RETURN(const KernelAddress files, Number(task, "task_struct", "files"));
  ASSIGN_OR_RETURN(const KernelAddress table, Number(files, "files_struct", "fdt"));
  ASSIGN_OR_RETURN(const std::uint64_t count, Number(table, "fdtable", "max_fds"));
  if (fd < 0 || static_cast<std::uint64_t>(fd) >= count) return NotFound("no such descriptor");
  ASSIGN_OR_RETURN(const KernelAddress places, Number(table, "fdtable", "fd"));
  ASSIGN_OR_RETURN(const auto file,
                   Value<KernelAddress>(places + static_cast<std::uint64_t>(fd) * sizeof(void*)));
  if (file == 0) return NotFound("no such descriptor");
  return file;
}

Result<KernelAddress> KernelMemory::OffsetOf(std::uint32_t processor) {
  const auto known = offsets_.find(processor);
  if (known != offsets_.end()) return known->second;
  ASSIGN_OR_RETURN(const KernelAddress file, FileOf(processor_map_.get()));
  ASSIGN_OR_RETURN(const KernelAddress map, Number(file, "file", "private_data"));
  ASSIGN_OR_RETURN(const KernelAddress places, AddressOf(map, "bpf_array", "pptrs"));
  ASSIGN_OR_RETURN(const auto variable, Value<KernelAddress>(places));
  Context context = {.address = processor, .size = 0, .result = 0};
  RETURN_IF_ERROR(Run(processor_finder_.get(), context).status());
  if (context.result == 0) return NotFound("processor " + std::to_string(processor));
  return offsets_[processor] = context.result - variable;
}

Result<std::int64_t> KernelMemory::SumOf(KernelAddress percpu_counter) {
  ASSIGN_OR_RETURN(std::uint64_t sum, Number(percpu_counter, "percpu_counter", "count"));
  ASSIGN_OR_RETURN(const KernelAddress parts, Number(percpu_counter, "percpu_counter", "counters"));
  ASSIGN_OR_RETURN(const std::vector<std::uint32_t> processors, PossibleProcessors());
  for (const std::uint32_t processor : processors) {
    ASSIGN_OR_RETURN(const std::uint64_t offset, OffsetOf(processor));
    ASSIGN_OR_RETURN(const auto part, Value<std::int32_t>(parts + offset));
    sum += static_cast<std::uint64_t>(static_cast<std::int64_t>(part));
  }
  return static_cast<std::int64_t>(sum);
}

}  // namespace stasis
