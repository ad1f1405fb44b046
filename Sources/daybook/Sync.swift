// daybook sync: makes everything durable that was done in a mounted filesystem.
//
// sync(2) and syncfs(2) reach a filesystem in user space only when it is mounted from a block device. This reaches it always:
// what the kernel still holds (shared mappings) is waited for, and an fsync commits.

import ArgumentParser
import CSupport
import Device
import FuseAdapter
import Glibc

struct SyncCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sync", abstract: "Make everything durable that was done in a mounted filesystem.",
        discussion: """
            What sync(1) does for other filesystems. Every fsync of any file or directory in the filesystem commits everything done before \
            it as well.
            """)

    @Argument(help: ArgumentHelp("Any directory in a mounted filesystem.", valueName: "dir"))
    var directories: [String]

    func run() throws {
        for directory in directories { try synchronizeFilesystem(of: directory) }
    }

    private func synchronizeFilesystem(of directory: String) throws(CommandError) {
        let bytes = argumentBytes(directory) + [0]
        let descriptor = bytes.withUnsafeBufferPointer {
            $0.withMemoryRebound(to: CChar.self) { open($0.baseAddress!, O_RDONLY | O_DIRECTORY | O_CLOEXEC) }
        }
        guard descriptor >= 0 else { throw .system(directory) }
        defer { close(descriptor) }
        var mount: MountedFilesystem?
        if let resolved = ProcessFiles.resolved(directory) { mount = MountedFilesystem.holding(resolved) }
        guard mount?.isDaybook == true else { throw CommandError("\(directory): not in a mounted Daybook filesystem") }
        let error = synchronize(descriptor)
        guard error == 0 else { throw .system(directory, error) }
    }
}
