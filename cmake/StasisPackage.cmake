# The Debian package: ./dev package, or `cpack -G DEB` in the build folder.
#
# The same source makes the same bytes: CPack gives every member the time of SOURCE_DATE_EPOCH, and what is
# compressed here is so without a time (gzip -n).

set(doc ${CMAKE_INSTALL_DATADIR}/doc/stasis)
install(DIRECTORY deploy/systemd/ DESTINATION lib/systemd/system)
install(FILES deploy/debian/copyright DESTINATION ${doc})
install(FILES deploy/debian/lintian-overrides DESTINATION ${CMAKE_INSTALL_DATADIR}/lintian/overrides RENAME stasis)

find_program(GZIP gzip REQUIRED)
# stasis_install_compressed(FILE NAME DESTINATION): FILE, compressed at install time as NAME.gz.
function(stasis_install_compressed file name destination)
  set(compressed ${CMAKE_BINARY_DIR}/compressed/${name}.gz)
  install(CODE "
    file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/compressed)
    execute_process(COMMAND ${GZIP} -9nc ${CMAKE_SOURCE_DIR}/${file}
      OUTPUT_FILE ${compressed} COMMAND_ERROR_IS_FATAL ANY)")
  install(FILES ${compressed} DESTINATION ${destination})
endfunction()
foreach(page stasis.1 kubectl-checkpoint.1 kubectl_complete-checkpoint.1 stasisd.8 stasis-node.8 stasis-placeholder.8
    stasis-pages.8)
  string(REGEX MATCH "[0-9]$" section ${page})
  stasis_install_compressed(docs/man/${page} ${page} ${CMAKE_INSTALL_MANDIR}/man${section})
endforeach()
stasis_install_compressed(deploy/debian/changelog changelog ${doc})

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME stasis)
set(CPACK_PACKAGE_CONTACT "The authors of Stasis <stasis@localhost>")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
# Files of the configuration are not the build's, so that `cmake --install` leaves /etc alone.
set(CPACK_INSTALLED_DIRECTORIES "${CMAKE_SOURCE_DIR}/deploy/debian/etc;/etc")
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION admin)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS systemd)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_PACKAGE_DESCRIPTION "checkpoint and restore for running containers
Stasis saves running containers and makes running containers of them again,
on the same or another node. Its agent stands between the kubelet and the
container runtime, which both stay as they are; the command stasis does the
same for any tree of processes. Images are compatible with those of CRIU,
which is not needed.
.
The package changes no kubelet: stasis-node install does, and puts it back.")
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA
  ${CMAKE_SOURCE_DIR}/deploy/debian/control/conffiles
  ${CMAKE_SOURCE_DIR}/deploy/debian/control/postinst
  ${CMAKE_SOURCE_DIR}/deploy/debian/control/prerm
  ${CMAKE_SOURCE_DIR}/deploy/debian/control/postrm)
include(CPack)
