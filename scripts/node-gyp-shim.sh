#!/bin/sh
# prebuildify calls this in place of node-gyp and takes the .node it finds in build/Release. It passes node-gyp's arguments
# (target, arch, devdir), which mean nothing to a Node-API addon built by cmake-js.
exec "$(dirname "$0")/../node_modules/.bin/cmake-js" rebuild -p 2
