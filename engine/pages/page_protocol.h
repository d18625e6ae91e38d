// What a restore tells the page server, over a SOCK_SEQPACKET socket: files, processes, then to begin.
// Both are of one build, so structs go as they are.
#pragma once

#include <cstdint>

#include "engine/pages/pending_pages.h"

namespace stasis::engine::pages {

/// The server's end of the socket is its descriptor of this number.
inline constexpr int kServerSocket = 3;

enum class MessageKind : std::uint32_t {
  kFile = 1,     ///< With a descriptor to read from. Files are numbered as they come.
  kProcess = 2,  ///< With its userfaultfd, its pidfd, and a memfd of PendingRuns.
  kBegin = 3,    ///< The program is about to run: from now on load all in the background.
};

struct Message {
  MessageKind kind = MessageKind::kBegin;
  std::uint32_t compressed =
      0;                     ///< kFile: 1 where the descriptor is of zstd frames with a seek table.
  std::uint64_t offset = 0;  ///< kFile: where in the descriptor, or its content, the file begins.
};
static_assert(sizeof(Message) == 16);

/// Sent by the server once, when it and its guardian are there; and again when all is loaded.
inline constexpr char kReady = 'r';
inline constexpr char kLoaded = 'l';

}  // namespace stasis::engine::pages
