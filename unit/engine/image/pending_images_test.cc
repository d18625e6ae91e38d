// Image files in a folder: all or none.
#include "engine/image/pending_images.h"

#include <filesystem>
#include <fstream>

#include "unit/engine/files/scratch_directory.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using testing::IsOk;
using testing::StatusIs;

TEST(PendingImagesTest, NothingIsThereUntilAllIsPublished) {
  const ScratchDirectory folder;
  {
    auto images = PendingImages::Create(folder / ".");
    ASSERT_THAT(images, IsOk());
    ASSERT_THAT((*images)->Put("core-1.img", "registers"), IsOk());
    ASSERT_THAT((*images)->Put("inventory.img", "all of it"), IsOk());
    EXPECT_TRUE(std::filesystem::is_empty(folder / "."));
    ASSERT_THAT((*images)->Publish(), IsOk());
  }
  const auto source = OpenDirectorySource(folder / ".");
  ASSERT_THAT(source, IsOk());
  EXPECT_EQ(*(*source)->Get("core-1.img"), "registers");
  EXPECT_EQ((*source)->Names().size(), 2u);
}

TEST(PendingImagesTest, WhatWasMadeReadyIsUsedOrLeavesNothing) {
  const ScratchDirectory folder;
  {
    auto images = PendingImages::Create(folder / ".");
    ASSERT_THAT(images, IsOk());
    (*images)->Prepare(3);
    ASSERT_THAT((*images)->Put("pages-1.img", "one"), IsOk());
    ASSERT_THAT((*images)->Put("pages-2.img", "another"), IsOk());
    ASSERT_THAT((*images)->Publish(), IsOk());
  }
  const auto source = OpenDirectorySource(folder / ".");
  ASSERT_THAT(source, IsOk());
  EXPECT_EQ(*(*source)->Get("pages-1.img"), "one");
  EXPECT_EQ(*(*source)->Get("pages-2.img"), "another");
  EXPECT_EQ((*source)->Names().size(), 2u);
}

TEST(PendingImagesTest, WhatOthersAreBasedOnIsTheirParent) {
  const ScratchDirectory folder;
  auto images = PendingImages::Create(folder / ".");
  ASSERT_THAT(images, IsOk());
  for (const std::string_view content : {"oldest", "older"}) {
    ASSERT_THAT((*images)->Put("pages-1.img", content), IsOk());
    ASSERT_THAT((*images)->BeginIncrement(), IsOk());
  }
  ASSERT_THAT((*images)->Put("pages-1.img", "youngest"), IsOk());
  EXPECT_TRUE(std::filesystem::is_empty(folder / "."));
  ASSERT_THAT((*images)->Publish(), IsOk());
  const auto source = OpenDirectorySource(folder / ".");
  ASSERT_THAT(source, IsOk());
  EXPECT_EQ(*(*source)->Get("pages-1.img"), "youngest");
  EXPECT_EQ(*(*source)->Get("parent/pages-1.img"), "older");
  EXPECT_EQ(*(*source)->Get("parent/parent/pages-1.img"), "oldest");
}

TEST(PendingImagesTest, NothingIsLeftOfWhatWasNotPublished) {
  const ScratchDirectory folder;
  {
    auto images = PendingImages::Create(folder / ".");
    ASSERT_THAT(images, IsOk());
    ASSERT_THAT((*images)->Put("core-1.img", "registers"), IsOk());
    EXPECT_THAT((*images)->Put("core/2.img", ""), StatusIs(StatusCode::kInvalidArgument));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder / "."));
}

TEST(PendingImagesTest, AFileOfAnotherThatCameMeanwhileIsNotReplaced) {
  const ScratchDirectory folder;
  {
    auto images = PendingImages::Create(folder / ".");
    ASSERT_THAT(images, IsOk());
    ASSERT_THAT((*images)->Put("core-1.img", "registers"), IsOk());
    ASSERT_THAT((*images)->Put("core-2.img", "registers"), IsOk());
    auto other = PendingImages::Create(folder / ".");
    ASSERT_THAT(other, IsOk());
    ASSERT_THAT((*other)->Put("core-2.img", "others"), IsOk());
    ASSERT_THAT((*other)->Publish(), IsOk());
    EXPECT_THAT((*images)->Publish(), StatusIs(StatusCode::kAlreadyExists));
  }
  const auto source = OpenDirectorySource(folder / ".");
  ASSERT_THAT(source, IsOk());
  EXPECT_EQ(*(*source)->Get("core-2.img"), "others");
  EXPECT_EQ((*source)->Names().size(), 1u);
}

TEST(PendingImagesTest, AFolderThatCannotBeTakenIsRefused) {
  const ScratchDirectory folder;
  EXPECT_THAT(PendingImages::Create(folder / "missing"),
              StatusIs(StatusCode::kNotFound, ::testing::HasSubstr("mkdir")));
  std::ofstream(folder / "dump.log") << "beside it";
  EXPECT_TRUE(PendingImages::Create(folder / ".").ok());
  std::ofstream(folder / "core-1.img") << "another's";
  EXPECT_THAT(PendingImages::Create(folder / "."),
              StatusIs(StatusCode::kAlreadyExists, ::testing::HasSubstr("core-1.img")));
}

}  // namespace
}  // namespace stasis::engine
