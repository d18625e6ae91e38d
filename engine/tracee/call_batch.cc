#include "engine/tracee/call_batch.h"

#include <algorithm>

namespace stasis::engine {
namespace {

constexpr std::size_t kCallBytes = sizeof(arch::CallInside);
constexpr std::size_t kAlignment = 16;

std::size_t Aligned(std::size_t bytes) { return (bytes + kAlignment - 1) & ~(kAlignment - 1); }

}  // namespace

void CallBatch::AddCall(std::string_view what, long number,
                        std::initializer_list<std::uint64_t> arguments, std::vector<std::byte> here,
                        int tolerated, Take take) {
  Call& call = calls_.emplace_back(what, number, std::array<std::uint64_t, 6>{}, std::move(here),
                                   tolerated, std::move(take));
  std::ranges::copy(arguments, call.arguments.begin());
}

bool CallBatch::Tolerates(const Call& call, int error) {
  return call.tolerated == kAnyError || call.tolerated == error;
}

Status CallBatch::Begin(RemoteSyscalls& remote, const OneRun& how) {
  remote_ = &remote;
  how_ = how;
  return BeginPiece(0);
}

Status CallBatch::BeginPiece(std::size_t first) {
  std::vector<MemoryPiece> pieces;
  RETURN_IF_ERROR(PreparePiece(first, pieces));
  RETURN_IF_ERROR(WriteMemory(remote_->tracee().tid(), pieces));
  return Launch();
}

Status CallBatch::Prepare(RemoteSyscalls& remote, const OneRun& how,
                          std::vector<MemoryPiece>& pieces) {
  remote_ = &remote;
  how_ = how;
  return PreparePiece(0, pieces);
}

Status CallBatch::PreparePiece(std::size_t first, std::vector<MemoryPiece>& pieces) {
  remote_->ResetArguments();
  piece_ = {.first = first, .last = first};
  std::size_t size = kCallBytes;  // of the last one, which tells the end
  while (piece_.last < calls_.size()) {
    const std::size_t more = kCallBytes + Aligned(calls_[piece_.last].here.size());
    if (size + more > remote_->room()) break;
    size += more;
    ++piece_.last;
  }
  if (piece_.last == first && first < calls_.size()) {
    return ResourceExhausted("arguments of a remote system call: no room");
  }
  ASSIGN_OR_RETURN(piece_.at, remote_->Reserve(size));
  piece_.bytes.resize(size);
  std::vector<arch::CallInside> table;
  const std::size_t count = piece_.last - first;
  const std::size_t data = (count + 1) * kCallBytes;
  std::uint64_t here = piece_.at + data;
  piece_.in_one_run = how_.signal != 0 && count > 0;
  for (std::size_t i = first; i < piece_.last; ++i) {
    arch::CallInside& inside = table.emplace_back();
    inside.number = static_cast<std::uint64_t>(calls_[i].number);
    std::ranges::replace_copy(calls_[i].arguments, inside.arguments.begin(), kHere, here);
    std::byte* const given = piece_.bytes.data() + (here - piece_.at);
    std::ranges::copy(calls_[i].here, given);
    if (const auto pointer = calls_[i].pointer) {
      std::uint64_t address = 0;
      std::memcpy(&address, given + *pointer, sizeof(address));
      address += here;
      std::memcpy(given + *pointer, &address, sizeof(address));
    }
    here += Aligned(calls_[i].here.size());
    if (how_.allowed && !how_.allowed(inside, arch::BehindCall(remote_->place().code))) {
      piece_.in_one_run = false;
    }
  }
  if (gives_) pieces.push_back({piece_.at + data, std::span(piece_.bytes).subspan(data)});
  if (piece_.in_one_run) {
    remote_->PrepareAll(piece_.at, std::move(table), how_.ids, how_.signal, pieces);
  } else {
    std::memcpy(piece_.bytes.data(), table.data(), count * kCallBytes);
  }
  return OkStatus();
}

Status CallBatch::Launch() { return piece_.in_one_run ? remote_->StartAll() : OkStatus(); }

Status CallBatch::MakeOneByOne() {
  auto* const table = reinterpret_cast<arch::CallInside*>(piece_.bytes.data());
  for (std::size_t i = 0; i < piece_.last - piece_.first; ++i) {
    const auto& words = table[i].arguments;
    const Call& call = calls_[piece_.first + i];
    const auto result = remote_->Call(call.what, call.number, words[0], words[1], words[2],
                                      words[3], words[4], words[5]);
    const int error = result.ok() ? 0 : ErrnoOf(result.status());
    if (!result.ok() && (error == 0 || !Tolerates(call, error))) return result.status();
    table[i].result = result.ok() ? static_cast<std::int64_t>(*result) : -error;
  }
  const std::size_t filled = (piece_.last - piece_.first + 1) * kCallBytes;
  return remote_->ReadBack(piece_.at + filled, std::span(piece_.bytes).subspan(filled));
}

Status CallBatch::Await(std::vector<MemoryRoom>& results) {
  if (!piece_.in_one_run) return OkStatus();
  RETURN_IF_ERROR(remote_->EndAll(how_.signal));
  results.push_back({piece_.at, piece_.bytes});
  return OkStatus();
}

bool CallBatch::AreMade() const {
  arch::CallInside last;
  const std::size_t at = (piece_.last - piece_.first - 1) * kCallBytes;
  std::memcpy(&last, piece_.bytes.data() + at, kCallBytes);
  return last.result != arch::CallInside::kNotMade;
}

Status CallBatch::FinishPiece() {
  if (!piece_.in_one_run) RETURN_IF_ERROR(MakeOneByOne());
  while (piece_.in_one_run && !AreMade()) {
    RETURN_IF_ERROR(remote_->GoOnWithAll());
    RETURN_IF_ERROR(EndPiece());
  }
  const std::size_t count = piece_.last - piece_.first;
  std::span<const std::byte> filled = std::span(piece_.bytes).subspan((count + 1) * kCallBytes);
  for (std::size_t i = 0; i < count; ++i) {
    const Call& call = calls_[piece_.first + i];
    arch::CallInside made;
    std::memcpy(&made, piece_.bytes.data() + i * kCallBytes, kCallBytes);
    const bool failed = made.result < 0 && made.result >= -4095;
    if (failed && !Tolerates(call, static_cast<int>(-made.result))) {
      return SyscallError(static_cast<int>(-made.result), call.what);
    }
    if (!failed) RETURN_IF_ERROR(call.take(made.result, filled.first(call.here.size())));
    filled = filled.subspan(Aligned(call.here.size()));
  }
  return OkStatus();
}

// What the calls gave, as far as they are made.
Status CallBatch::EndPiece() {
  std::vector<MemoryRoom> results;
  RETURN_IF_ERROR(Await(results));
  return ReadMemory(remote_->tracee().tid(), results);
}

Status CallBatch::Finish() {
  while (true) {
    RETURN_IF_ERROR(FinishPiece());
    if (piece_.last == calls_.size()) return OkStatus();
    RETURN_IF_ERROR(BeginPiece(piece_.last));
    RETURN_IF_ERROR(EndPiece());
  }
}

Status CallBatch::End() {
  RETURN_IF_ERROR(EndPiece());
  return Finish();
}

}  // namespace stasis::engine
