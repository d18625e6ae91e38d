#include "engine/files/terminal_settings.h"

#include <asm/termbits.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>

#include "engine/image/schema/files.pb.h"

namespace stasis::engine {
namespace {

TEST(TerminalSettingsTest, ControlCharactersAreAsCriuHasThemAndThoseOfOldImagesAreRead) {
  termios2 settings = {};
  for (std::size_t i = 0; i < std::size(settings.c_cc); ++i)
    settings.c_cc[i] = static_cast<cc_t>(i + 1);
  image::TermiosEntry entry;
  ToImage(settings, entry);
  ASSERT_EQ(entry.c_cc_size(), 19);
  EXPECT_EQ(entry.c_cc(0), 0x04030201u);
  EXPECT_EQ(entry.c_cc(4), 0x00131211u);
  EXPECT_EQ(entry.c_cc(5), 0u);
  const termios2 read = FromImage(entry);
  EXPECT_TRUE(std::ranges::equal(read.c_cc, settings.c_cc));

  image::TermiosEntry old;
  for (const cc_t character : settings.c_cc) old.add_c_cc(character);
  const termios2 again = FromImage(old);
  EXPECT_TRUE(std::ranges::equal(again.c_cc, settings.c_cc));
}

}  // namespace
}  // namespace stasis::engine
