// Source  Documentation/bpf/btf.rst, include/uapi/linux/btf.h; tested on 6.18
#include "engine/base/kernel_btf.h"

#include <fcntl.h>
#include <linux/btf.h>

#include <cstddef>
#include <cstring>
#include <mutex>
#include <optional>

#include "engine/base/io.h"

namespace stasis {
namespace {

constexpr const char* kPath = "/sys/kernel/btf/vmlinux";
constexpr int kDeepest = 8;  // of structures in each other

std::uint32_t KindOf(std::uint32_t info) { return BTF_INFO_KIND(info); }

// Bytes that follow a type of that kind; nothing for a kind that we do not know.
std::optional<std::uint64_t> RestOf(std::uint32_t info) {
  const std::uint64_t count = BTF_INFO_VLEN(info);
  switch (KindOf(info)) {
    case BTF_KIND_INT:
    case BTF_KIND_VAR:
    case BTF_KIND_DECL_TAG:
      return 4;
    case BTF_KIND_ARRAY:
      return sizeof(btf_array);
    case BTF_KIND_STRUCT:
    case BTF_KIND_UNION:
    case BTF_KIND_DATASEC:
    case BTF_KIND_ENUM64:
      return count * 12;
    case BTF_KIND_ENUM:
    case BTF_KIND_FUNC_PROTO:
      return count * 8;
    case BTF_KIND_PTR:
    case BTF_KIND_FWD:
    case BTF_KIND_TYPEDEF:
    case BTF_KIND_VOLATILE:
    case BTF_KIND_CONST:
    case BTF_KIND_RESTRICT:
    case BTF_KIND_FUNC:
    case BTF_KIND_FLOAT:
    case BTF_KIND_TYPE_TAG:
      return 0;
    default:
      return std::nullopt;
  }
}

}  // namespace

Result<std::shared_ptr<const KernelBtf>> KernelBtf::Running() {
  static std::mutex mutex;
  static std::weak_ptr<const KernelBtf> in_use;
  const std::scoped_lock lock(mutex);
  if (std::shared_ptr<const KernelBtf> known = in_use.lock()) return known;
  Result<std::string> bytes = ReadFileAt(AT_FDCWD, kPath);
  if (!bytes.ok()) {
    return FailedPrecondition("this kernel does not describe its structures (" +
                              Message(bytes.status()) + "; CONFIG_DEBUG_INFO_BTF)");
  }
  ASSIGN_OR_RETURN(KernelBtf btf, Parse(*std::move(bytes)));
  auto known = std::make_shared<const KernelBtf>(std::move(btf));
  in_use = known;
  return known;
}

Result<KernelBtf> KernelBtf::Parse(std::string bytes) {
  btf_header header = {};
  if (bytes.size() < sizeof(header)) return DataLoss("BTF without a header");
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != BTF_MAGIC || header.version != BTF_VERSION) {
    return DataLoss("BTF of an unknown version");
  }
  KernelBtf btf(std::move(bytes));
  const std::uint64_t types = std::uint64_t{header.hdr_len} + header.type_off;
  btf.strings_ = std::uint64_t{header.hdr_len} + header.str_off;
  btf.strings_end_ = btf.strings_ + header.str_len;
  const std::uint64_t types_end = types + header.type_len;
  const bool ends = header.str_len > 0 && btf.strings_end_ <= btf.bytes_.size() &&
                    btf.bytes_[btf.strings_end_ - 1] == '\0';
  if (types_end > btf.bytes_.size() || !ends) return DataLoss("BTF that is cut off");
  RETURN_IF_ERROR(btf.ReadTypes(types, types_end));
  return btf;
}

Status KernelBtf::ReadTypes(std::uint64_t begin, std::uint64_t end) {
  types_.push_back(0);
  while (begin < end) {
    if (end - begin < sizeof(btf_type)) return DataLoss("BTF: half a type");
    const auto rest = RestOf(Word(begin + offsetof(btf_type, info)));
    if (!rest || end - begin - sizeof(btf_type) < *rest) {
      return DataLoss("BTF: type " + std::to_string(types_.size()) + " is of an unknown kind");
    }
    const std::uint32_t kind = KindOf(Word(begin + offsetof(btf_type, info)));
    const auto number = static_cast<std::uint32_t>(types_.size());
    if (kind == BTF_KIND_STRUCT || kind == BTF_KIND_UNION) structures_.push_back(number);
    if (kind == BTF_KIND_ENUM) enumerations_.push_back(number);
    types_.push_back(static_cast<std::uint32_t>(begin));
    begin += sizeof(btf_type) + *rest;
  }
  return OkStatus();
}

std::uint32_t KernelBtf::Word(std::uint64_t at) const {
  std::uint32_t word = 0;
  std::memcpy(&word, bytes_.data() + at, sizeof(word));
  return word;
}

std::string_view KernelBtf::Name(std::uint32_t offset) const {
  if (offset >= strings_end_ - strings_) return {};
  return bytes_.data() + strings_ + offset;  // the last ends with a NUL
}

// Without names and qualifiers; 0 for what is of no known size.
std::uint32_t KernelBtf::Stripped(std::uint32_t type) const {
  for (int i = 0; i < 64 && type > 0 && type < types_.size(); ++i) {
    const std::uint64_t at = types_[type];
    switch (KindOf(Word(at + offsetof(btf_type, info)))) {
      case BTF_KIND_TYPEDEF:
      case BTF_KIND_VOLATILE:
      case BTF_KIND_CONST:
      case BTF_KIND_RESTRICT:
      case BTF_KIND_TYPE_TAG:
        type = Word(at + offsetof(btf_type, type));
        continue;
      default:
        return type;
    }
  }
  return 0;
}

Result<std::uint32_t> KernelBtf::SizeOfType(std::uint32_t type) const {
  std::uint64_t count = 1;
  for (int i = 0; i < kDeepest; ++i) {
    type = Stripped(type);
    if (type == 0) return NotFound("BTF: a type of no size");
    const std::uint64_t at = types_[type];
    switch (KindOf(Word(at + offsetof(btf_type, info)))) {
      case BTF_KIND_PTR:
        return static_cast<std::uint32_t>(count * sizeof(void*));
      case BTF_KIND_ARRAY:
        count *= Word(at + sizeof(btf_type) + offsetof(btf_array, nelems));
        type = Word(at + sizeof(btf_type) + offsetof(btf_array, type));
        continue;
      case BTF_KIND_INT:
      case BTF_KIND_STRUCT:
      case BTF_KIND_UNION:
      case BTF_KIND_ENUM:
      case BTF_KIND_ENUM64:
        return static_cast<std::uint32_t>(count * Word(at + offsetof(btf_type, size)));
      default:
        return NotFound("BTF: a type of no size");
    }
  }
  return NotFound("BTF: types within types");
}

std::vector<std::uint32_t> KernelBtf::Named(std::string_view structure) const {
  std::vector<std::uint32_t> found;
  for (const std::uint32_t type : structures_) {
    if (Name(Word(types_[type])) == structure) found.push_back(type);
  }
  return found;
}

// `path` within `type`, which begins at bit `bit`.
bool KernelBtf::FindIn(std::uint32_t type, std::string_view path, std::uint32_t bit, int depth,
                       Field& found) const {
  type = Stripped(type);
  if (type == 0 || depth > kDeepest) return false;
  const std::uint64_t at = types_[type];
  const std::uint32_t info = Word(at + offsetof(btf_type, info));
  if (KindOf(info) != BTF_KIND_STRUCT && KindOf(info) != BTF_KIND_UNION) return false;
  const std::string_view name = path.substr(0, path.find('.'));
  const std::string_view rest = name.size() < path.size() ? path.substr(name.size() + 1) : "";
  for (std::uint64_t i = 0; i < BTF_INFO_VLEN(info); ++i) {
    const std::uint64_t member = at + sizeof(btf_type) + i * sizeof(btf_member);
    const std::uint32_t offset = Word(member + offsetof(btf_member, offset));
    const bool has_bits = BTF_INFO_KFLAG(info) != 0;
    const std::uint32_t start = bit + (has_bits ? BTF_MEMBER_BIT_OFFSET(offset) : offset);
    const std::uint32_t member_type = Word(member + offsetof(btf_member, type));
    const std::string_view member_name = Name(Word(member));
    if (member_name.empty()) {
      if (FindIn(member_type, path, start, depth + 1, found)) return true;
      continue;
    }
    if (member_name != name) continue;
    if (!rest.empty()) return FindIn(member_type, rest, start, depth + 1, found);
    const Result<std::uint32_t> size = SizeOfType(member_type);
    const std::uint32_t bits = has_bits ? BTF_MEMBER_BITFIELD_SIZE(offset) : 0;
    found = {.offset = start / 8, .size = size.value_or(0), .shift = start % 8, .bits = bits};
    return size.ok() && (bits != 0 || found.shift == 0);
  }
  return false;
}

Result<KernelBtf::Field> KernelBtf::Find(std::string_view structure, std::string_view path) const {
  std::optional<Field> found;
  const std::string name = std::string(structure) + "." + std::string(path);
  for (const std::uint32_t type : Named(structure)) {
    Field field;
    const bool has = FindIn(type, path, 0, 0, field);
    const bool same = !found || (found->offset == field.offset && found->size == field.size &&
                                 found->shift == field.shift && found->bits == field.bits);
    if (!has || !same) return NotFound("this kernel has no " + name + " that we know");
    found = field;
  }
  if (!found) return NotFound("this kernel has no " + name + " that we know");
  return *found;
}

Result<std::uint32_t> KernelBtf::Constant(std::string_view name) const {
  for (const std::uint32_t type : enumerations_) {
    const std::uint32_t info = Word(types_[type] + offsetof(btf_type, info));
    for (std::uint64_t i = 0; i < BTF_INFO_VLEN(info); ++i) {
      const std::uint64_t at = types_[type] + sizeof(btf_type) + i * sizeof(btf_enum);
      if (Name(Word(at)) == name) return Word(at + offsetof(btf_enum, val));
    }
  }
  return NotFound("this kernel has no " + std::string(name) + " that we know");
}

Result<std::uint32_t> KernelBtf::SizeOf(std::string_view structure) const {
  const std::vector<std::uint32_t> types = Named(structure);
  if (types.size() == 1) return SizeOfType(types.front());
  return NotFound("this kernel has no " + std::string(structure) + " that we know");
}

}  // namespace stasis
