// The bytes and lines that wait at one end of a pseudo-terminal: taken out, and put in without being taken for
// something that is typed. After it was made all of it is system calls only, for SurvivingStep().
#pragma once

#include <asm/termbits.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace stasis::engine {

/// What was typed ends in lines while ICANON is set; an end of file ends one without being in it.
struct TerminalQueue {
  std::vector<char> bytes;
  std::vector<std::uint32_t> lines;  ///< Lengths of complete ones, from the first byte on.
  std::size_t byte_count = 0, line_count = 0;
  bool next_is_literal = false;  ///< VLNEXT was typed, and nothing after it.

  /// Has room for all that a terminal holds.
  static TerminalQueue WithRoom();
};

/// Most that the line discipline keeps; what follows waits in front of it, not looked at yet.
constexpr std::size_t kLineDisciplineBytes = 4095;

/// Settings of the /dev/pts end under which nothing that is put in is echoed, translated or acted upon. What
/// waits is not touched by them, a stopped output stays stopped.
class QuietSettings {
 public:
  /// `before`: those in force, which Leave() brings back.
  explicit QuietSettings(const termios2& before);
  int Enter(int fd) const;  ///< 0 or an errno, as of all below.
  int Leave(int fd) const;

  bool canonical() const { return (before_.c_lflag & ICANON) != 0; }
  char end_of_file() const { return end_of_file_; }
  char literal_next() const { return literal_next_; }
  bool IsEnd(char byte) const;      ///< Does it end a line?
  bool IsSpecial(char byte) const;  ///< Or has it another meaning?

 private:
  termios2 before_, quiet_;
  char end_of_file_, literal_next_;
};

/// All that `fd`, O_NONBLOCK, gives without waiting.
int TakeAll(int fd, bool canonical, TerminalQueue& queue);
/// The beginning of a line, once TakeAll() has taken the complete ones. Under quiet settings.
int TakeBeginning(int fd, const QuietSettings& quiet, TerminalQueue& queue);
/// Puts `queue` in at `fd`, which is empty. What is more than a line discipline keeps is written to `other`,
/// O_NONBLOCK, which is the other end.
int PutBytes(int fd, int other, const TerminalQueue& queue);
int PutLines(int fd, int other, const QuietSettings& quiet, const TerminalQueue& queue);

}  // namespace stasis::engine
