// Source  ptrace(2) PTRACE_SECCOMP_GET_FILTER, PTRACE_O_SUSPEND_SECCOMP; kernel/seccomp.c; tested
//         on 6.18
// Rule    Both need CAP_SYS_ADMIN and a tracer without seccomp of its own. The suspension ends with
//         the tracing.
// Rule    Filter 0 is the oldest one (get_nth_filter() counts from the far end of the chain;
//         ptrace(2) has it the other way round). Images have the newest first: `prev` of a filter
//         is the next newer one, and a thread names its oldest, so that a restore installs them as
//         they were.
#include "engine/tasks/dump_seccomp.h"

#include <linux/filter.h>
#include <sys/ptrace.h>

#include <cerrno>
#include <utility>

#include "engine/image/image_file.h"

namespace stasis::engine {
namespace {

constexpr int kStrict = 1;
constexpr int kGetFilter = 0x420c, kGetMetadata = 0x420d;

struct Metadata {
  std::uint64_t filter_offset, flags;
};

long Ptrace(int request, pid_t tid, std::uint64_t address, void* data) {
  return ::ptrace(static_cast<__ptrace_request>(request), tid, address, data);
}

}  // namespace

Result<SeccompChain> SeccompDumper::ReadChain(const FrozenThread& thread) {
  SeccompChain chain;
  while (true) {
    const long length = Ptrace(kGetFilter, thread.tid(), chain.size(), nullptr);
    if (length < 0) {
      if (errno == ENOENT) return chain;
      if (errno == EMEDIUMTYPE)
        return Unimplemented("has a seccomp filter that is not classic BPF");
      return SyscallError(errno,
                          "ptrace SECCOMP_GET_FILTER (CAP_SYS_ADMIN, and no seccomp profile "
                          "for the agent itself, are needed)");
    }
    SeccompFilter filter;
    filter.program.resize(static_cast<std::size_t>(length) * sizeof(sock_filter));
    if (Ptrace(kGetFilter, thread.tid(), chain.size(), filter.program.data()) != length) {
      return SyscallError(errno, "ptrace SECCOMP_GET_FILTER");
    }
    Metadata metadata = {.filter_offset = chain.size(), .flags = 0};
    if (Ptrace(kGetMetadata, thread.tid(), sizeof(metadata), &metadata) >= 0) {
      filter.flags = static_cast<std::uint32_t>(metadata.flags);
    }
    chain.push_back(std::move(filter));
  }
}

const SeccompDumper::Known::value_type& SeccompDumper::Note(const SeccompChain& chain) {
  const auto [known, is_new] = known_.try_emplace(chain, 0);
  if (!is_new) return *known;
  for (auto filter = chain.rbegin(); filter != chain.rend(); ++filter) {
    const auto newer = static_cast<std::uint32_t>(entry_.seccomp_filters_size() - 1);
    image::SeccompFilter& entry = *entry_.add_seccomp_filters();
    entry.set_filter(filter->program);
    if (filter != chain.rbegin()) entry.set_prev(newer);
    if (filter->flags != 0) entry.set_flags(filter->flags);
  }
  known->second = static_cast<std::uint32_t>(entry_.seccomp_filters_size() - 1);
  return *known;
}

Status SeccompDumper::Add(DumpedProcess& process) {
  for (DumpedThread& thread : process.threads) {
    if (thread.frozen == nullptr || thread.frozen->status.seccomp == 0) continue;
    const std::string name = "tid " + std::to_string(thread.frozen->ns_tid());
    image::ThreadCoreEntry& core = *thread.core.mutable_thread_core();
    if (thread.frozen->status.seccomp == kStrict) {
      core.set_seccomp_mode(image::SECCOMP_STRICT);
    } else {
      const Result<SeccompChain> chain = ReadChain(*thread.frozen);
      if (!chain.ok()) return Annotate(chain.status(), name);
      core.set_seccomp_mode(image::SECCOMP_FILTER);
      const auto& [filters, oldest] = Note(*chain);
      core.set_seccomp_filter(oldest);
      thread.filters = &filters;
    }
    constexpr std::uint64_t kOptions = PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP;
    if (Ptrace(PTRACE_SETOPTIONS, thread.frozen->tid(), 0, reinterpret_cast<void*>(kOptions)) !=
        0) {
      return SyscallError(errno, "ptrace SETOPTIONS SUSPEND_SECCOMP " + name);
    }
  }
  return OkStatus();
}

Status SeccompDumper::WriteImage(ImageSink& sink) const {
  if (entry_.seccomp_filters_size() == 0) return OkStatus();
  return PutOne(sink, ImageName("seccomp"), "seccomp", entry_);
}

}  // namespace stasis::engine
