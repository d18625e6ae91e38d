// Source  seccomp(2), Documentation/networking/filter.rst, kernel/seccomp.c (seccomp_check_filter); tested on
//         6.18
// Rule    All filters run, and the strictest answer counts. Programs are classic BPF without loops: jumps lead
//         forward. They see struct seccomp_data in aligned words only, and 16 words of scratch memory.
#include "engine/tasks/seccomp_filter.h"

#include <linux/filter.h>
#include <linux/seccomp.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <optional>

namespace stasis::engine {
namespace {

using Data = std::array<std::uint32_t, sizeof(seccomp_data) / sizeof(std::uint32_t)>;

Data DataOf(const arch::CallInside& call, std::uint64_t behind) {
  seccomp_data data = {};
  data.nr = static_cast<int>(call.number);
  data.arch = arch::kAuditArchitecture;
  data.instruction_pointer = behind;
  std::ranges::copy(call.arguments, data.args);
  Data words;
  static_assert(sizeof(words) == sizeof(data));
  std::memcpy(words.data(), &data, sizeof(data));
  return words;
}

class Machine {
 public:
  explicit Machine(const Data& data) : data_(data) {}

  // What the program returns; nothing when it has something that we do not know.
  std::optional<std::uint32_t> Run(const std::vector<sock_filter>& program) {
    for (std::size_t at = 0; at < program.size(); ++at) {
      const sock_filter& step = program[at];
      switch (BPF_CLASS(step.code)) {
        case BPF_RET:
          return BPF_RVAL(step.code) == BPF_A ? a_ : step.k;
        case BPF_JMP:
          at += Jump(step);
          break;
        default:
          if (!Step(step)) return std::nullopt;
      }
    }
    return std::nullopt;
  }

 private:
  std::size_t Jump(const sock_filter& step) const {
    const std::uint32_t other = BPF_SRC(step.code) == BPF_X ? x_ : step.k;
    switch (BPF_OP(step.code)) {
      case BPF_JEQ:
        return a_ == other ? step.jt : step.jf;
      case BPF_JGT:
        return a_ > other ? step.jt : step.jf;
      case BPF_JGE:
        return a_ >= other ? step.jt : step.jf;
      case BPF_JSET:
        return (a_ & other) != 0 ? step.jt : step.jf;
      default:
        return step.k;  // BPF_JA
    }
  }

  bool Step(const sock_filter& step) {
    const auto index = static_cast<std::size_t>(step.k);
    switch (step.code) {
      case BPF_LD | BPF_W | BPF_ABS:
        if (index % 4 != 0 || index / 4 >= data_.size()) return false;
        a_ = data_[index / 4];
        return true;
      case BPF_LD | BPF_W | BPF_LEN:
        a_ = sizeof(seccomp_data);
        return true;
      case BPF_LDX | BPF_W | BPF_LEN:
        x_ = sizeof(seccomp_data);
        return true;
      case BPF_LD | BPF_IMM:
        a_ = step.k;
        return true;
      case BPF_LDX | BPF_IMM:
        x_ = step.k;
        return true;
      case BPF_MISC | BPF_TAX:
        x_ = a_;
        return true;
      case BPF_MISC | BPF_TXA:
        a_ = x_;
        return true;
      case BPF_LD | BPF_MEM:
      case BPF_LDX | BPF_MEM:
      case BPF_ST:
      case BPF_STX:
        return index < memory_.size() && Move(step);
      default:
        return BPF_CLASS(step.code) == BPF_ALU && Compute(step);
    }
  }

  bool Move(const sock_filter& step) {
    std::uint32_t& word = memory_[step.k];
    switch (BPF_CLASS(step.code)) {
      case BPF_LD:
        a_ = word;
        return true;
      case BPF_LDX:
        x_ = word;
        return true;
      case BPF_ST:
        word = a_;
        return true;
      default:
        word = x_;
        return true;
    }
  }

  bool Compute(const sock_filter& step) {
    const std::uint32_t other = BPF_SRC(step.code) == BPF_X ? x_ : step.k;
    switch (BPF_OP(step.code)) {
      case BPF_ADD:
        a_ += other;
        return true;
      case BPF_SUB:
        a_ -= other;
        return true;
      case BPF_MUL:
        a_ *= other;
        return true;
      case BPF_AND:
        a_ &= other;
        return true;
      case BPF_OR:
        a_ |= other;
        return true;
      case BPF_XOR:
        a_ ^= other;
        return true;
      case BPF_NEG:
        a_ = 0 - a_;
        return true;
      case BPF_LSH:
        a_ <<= other & 31;
        return true;
      case BPF_RSH:
        a_ >>= other & 31;
        return true;
      default:
        return false;  // division, which nobody uses here
    }
  }

  const Data& data_;
  std::uint32_t a_ = 0, x_ = 0;
  std::array<std::uint32_t, BPF_MEMWORDS> memory_ = {};
};

}  // namespace

bool Allows(const SeccompChain& chain, const arch::CallInside& call, std::uint64_t behind) {
  const Data data = DataOf(call, behind);
  return std::ranges::all_of(chain, [&](const SeccompFilter& filter) {
    std::vector<sock_filter> program(filter.program.size() / sizeof(sock_filter));
    std::memcpy(program.data(), filter.program.data(), program.size() * sizeof(sock_filter));
    const std::optional<std::uint32_t> said = Machine(data).Run(program);
    const std::uint32_t action = said.value_or(SECCOMP_RET_KILL_PROCESS) & SECCOMP_RET_ACTION_FULL;
    return action == SECCOMP_RET_ALLOW || action == SECCOMP_RET_LOG;
  });
}

}  // namespace stasis::engine
