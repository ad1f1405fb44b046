// Daemon: this program, started again to serve in the background. Not forked: the Swift runtime does not survive a fork.

import CFuseShim
import Glibc

/// Starts this program with `arguments` (its name first) in a session of its own, with `writer` as its descriptor
/// `statusDescriptor` and its standard error shared with ours. Returns its process number.
public func startDaemon(
    _ arguments: [String], writer: Int32, as statusDescriptor: Int32
) throws(ServeError) -> Int32 {
    var pointers: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
    defer { for pointer in pointers { free(pointer) } }
    var child = pid_t()
    let number = daybook_fuse_spawn_daemon(&pointers, environ, writer, statusDescriptor, &child)
    guard number == 0 else { throw ServeError(description: "cannot start the daemon: \(String(cString: strerror(number)))") }
    return child
}
