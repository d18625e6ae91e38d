// Source  vdso(7), elf(5), arch/x86/entry/vdso/vdso-layout.lds.S; tested on 6.18, with the vDSOs of other kernels
// Rule    A vDSO is linked at 0, or at an address that its PT_LOAD tells; programs look for its functions by
//         PT_DYNAMIC, DT_SYMTAB, DT_STRTAB. Its layout puts .dynstr right behind .dynsym, which gives their number:
//         DT_HASH is not in all of them.
// Rule    A function has several names: clock_gettime is __vdso_clock_gettime.
#include "engine/memory/vdso_functions.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include "engine/arch/arch.h"

namespace stasis::engine {
namespace {

using Bytes = std::span<const std::byte>;

template <typename T>
std::optional<T> At(Bytes bytes, std::uint64_t offset) {
  if (offset > bytes.size() || bytes.size() - offset < sizeof(T)) return std::nullopt;
  T value = {};
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

// Up to its NUL, which is there.
std::optional<std::string> TextAt(Bytes bytes, std::uint64_t offset) {
  if (offset >= bytes.size()) return std::nullopt;
  const Bytes rest = bytes.subspan(offset);
  const auto end = std::ranges::find(rest, std::byte{0});
  if (end == rest.end()) return std::nullopt;
  return std::string(reinterpret_cast<const char*>(rest.data()),
                     static_cast<std::size_t>(end - rest.begin()));
}

// What its dynamic section tells, in bytes from the start.
struct Tables {
  std::uint64_t base = 0;  // what addresses count from
  std::uint64_t symbols = 0, names = 0;
};

std::optional<Tables> FindTables(Bytes vdso) {
  const auto header = At<Elf64_Ehdr>(vdso, 0);
  if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 ||
      header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_phentsize != sizeof(Elf64_Phdr)) {
    return std::nullopt;
  }
  std::optional<Elf64_Phdr> load, dynamic;
  for (unsigned i = 0; i < header->e_phnum; ++i) {
    const auto segment = At<Elf64_Phdr>(vdso, header->e_phoff + i * sizeof(Elf64_Phdr));
    if (!segment) return std::nullopt;
    if (segment->p_type == PT_LOAD && !load) load = segment;
    if (segment->p_type == PT_DYNAMIC) dynamic = segment;
  }
  if (!load || !dynamic) return std::nullopt;
  Tables tables = {.base = load->p_vaddr - load->p_offset};
  for (std::uint64_t at = dynamic->p_offset;; at += sizeof(Elf64_Dyn)) {
    const auto entry = At<Elf64_Dyn>(vdso, at);
    if (!entry) return std::nullopt;
    if (entry->d_tag == DT_NULL) break;
    if (entry->d_tag == DT_SYMTAB) tables.symbols = entry->d_un.d_ptr - tables.base;
    if (entry->d_tag == DT_STRTAB) tables.names = entry->d_un.d_ptr - tables.base;
  }
  const bool is_sound =
      tables.symbols != 0 && tables.symbols < tables.names && tables.names < vdso.size();
  return is_sound ? std::optional(tables) : std::nullopt;
}

}  // namespace

Result<std::map<std::string, std::uint64_t>> VdsoFunctions(Bytes vdso) {
  const auto tables = FindTables(vdso);
  if (!tables) return DataLoss("a vDSO that is no ELF file with symbols");
  std::map<std::string, std::uint64_t> functions;
  for (std::uint64_t at = tables->symbols; at + sizeof(Elf64_Sym) <= tables->names;
       at += sizeof(Elf64_Sym)) {
    const auto symbol = At<Elf64_Sym>(vdso, at);
    if (!symbol || symbol->st_shndx == SHN_UNDEF) continue;
    if (ELF64_ST_TYPE(symbol->st_info) != STT_FUNC) continue;
    const auto name = TextAt(vdso, tables->names + symbol->st_name);
    const std::uint64_t offset = symbol->st_value - tables->base;
    if (!name || offset >= vdso.size()) return DataLoss("a vDSO with a symbol outside of it");
    functions[*name] = offset;
  }
  return functions;
}

namespace {

// Code for the function that has all of these `names`.
std::vector<std::byte> WayOf(const std::vector<std::string>& names,
                             const std::map<std::string, std::uint64_t>& live,
                             std::uint64_t live_start) {
  for (const std::string& name : names) {
    const auto found = live.find(name);
    if (found != live.end()) return arch::JumpTo(live_start + found->second);
  }
  for (const std::string& name : names) {
    std::vector<std::byte> code = arch::InsteadOfVdso(name);
    if (!code.empty()) return code;
  }
  return {};
}

}  // namespace

Status RedirectVdso(std::span<std::byte> vdso, Bytes live, std::uint64_t live_start) {
  ASSIGN_OR_RETURN(const auto theirs, VdsoFunctions(vdso));
  ASSIGN_OR_RETURN(const auto ours, VdsoFunctions(live));
  std::map<std::uint64_t, std::vector<std::string>> by_offset;
  for (const auto& [name, offset] : theirs) by_offset[offset].push_back(name);
  for (auto function = by_offset.begin(); function != by_offset.end(); ++function) {
    const auto& [offset, names] = *function;
    const auto next = std::next(function);
    const std::uint64_t end = next == by_offset.end() ? vdso.size() : next->first;
    const std::vector<std::byte> code = WayOf(names, ours, live_start);
    if (code.empty() || code.size() > end - offset) {
      return FailedPrecondition("this kernel has nothing for the vDSO's function " + names.front() +
                                ", which the one of the checkpoint had");
    }
    std::ranges::copy(code, vdso.begin() + static_cast<std::ptrdiff_t>(offset));
  }
  return OkStatus();
}

}  // namespace stasis::engine
