// Goal: a mount whose disk fails is read-only and says so, goes on serving reads, and loses nothing that was acknowledged; a block that
// cannot be read is an error for whoever reads it, and for nobody else.
// Method: the built command serves a real mount with a library before its C library that makes the calls on the image fail (Tests/CFaults).
// Skipped where nothing can be mounted.

import CTestSupport
import Device
import Format
import Glibc
import Testing
import Volume

private let faultLibrary = command[..<command.lastIndex(of: "/")!] + "/libDaybookFaults.so"

/// A mount whose disk fails when asked to.
private final class FaultyMount {
    let image = temporaryPath("image")
    let directory = temporaryPath("mount")
    private let faults = temporaryPath("faults")
    private let log = temporaryPath("log")
    private var isMounted = false

    init() throws {
        try #require(daybook("mkfs", "--size", "128M", image).status == 0)
        mkdir(directory, 0o755)
        try mount()
    }
    deinit {
        if isMounted { _ = unmount() }
        rmdir(directory)
        for path in [image, faults, log] { unlink(path) }
    }

    func mount() throws {
        fail("")
        // In the foreground, so that what the daemon says can be read.
        _ = system(
            "LD_PRELOAD='\(faultLibrary)' DAYBOOK_FAULTS='\(faults)' '\(command)' mount -f -o commit=3600 '\(image)' '\(directory)' >'\(log)' 2>&1 &")
        isMounted = waitUntil { MountedFilesystem.at(directory)?.isDaybook == true }
        try #require(isMounted, "\(messages)")
    }

    func unmount() -> Bool {
        isMounted = false
        guard waitUntil({ system("umount '\(directory)' 2>/dev/null") == 0 }), let device = try? FileDevice(path: image, access: .readOnly)
        else { return false }
        return waitUntil { !ImageLock.hasWriter(descriptor: device.descriptor) }
    }

    var messages: String { String(decoding: ProcessFiles.contents(log) ?? [], as: UTF8.self) }

    func fail(_ words: String) {
        let descriptor = open(faults, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        precondition(Glibc.write(descriptor, words, words.utf8.count) == words.utf8.count)
        close(descriptor)
    }

    func write(_ name: String, _ bytes: [UInt8], sync: Bool) -> Int32 {
        let descriptor = open(directory + "/" + name, O_WRONLY | O_CREAT | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else { return errno }
        defer { close(descriptor) }
        guard Glibc.write(descriptor, bytes, bytes.count) == bytes.count else { return errno }
        return sync && fsync(descriptor) != 0 ? errno : 0
    }

    /// Past the kernel's cache, a block at a time: the bytes, or nil for each that cannot be read.
    func read(_ name: String) -> [[UInt8]?] {
        let descriptor = open(directory + "/" + name, O_RDONLY | O_CLOEXEC | test_o_direct())
        precondition(descriptor >= 0)
        defer { close(descriptor) }
        var page: UnsafeMutableRawPointer?
        posix_memalign(&page, 4096, 4096)
        defer { free(page) }
        var result: [[UInt8]?] = []
        while true {
            let count = pread(descriptor, page, 4096, off_t(result.count) << 12)
            if count == 0 { return result }
            result.append(count < 0 ? nil : Array(UnsafeRawBufferPointer(start: page, count: count)))
        }
    }
}

private func waitUntil(_ what: () -> Bool) -> Bool {
    for _ in 0..<500 {
        if what() { return true }
        usleep(20_000)
    }
    return what()
}

@Suite(.enabled(if: canMount, "not root, or no /dev/fuse"), .serialized, .timeLimit(.minutes(2)))
struct FaultTests {
    private func contents(_ seed: UInt8) -> [UInt8] { (0..<20_480).map { UInt8(truncatingIfNeeded: $0 >> 8) &+ seed } }

    @Test(arguments: ["write", "flush"]) func theMountIsReadOnlyAndSaysSo(fault: String) throws {
        let mount = try FaultyMount()
        #expect(mount.write("kept", contents(1), sync: true) == 0)
        #expect(daybook("stat", mount.directory).status == 0)
        #expect(mount.write("lost", contents(2), sync: false) == 0)
        mount.fail(fault)
        // Whoever asks for durability is told that there is none; for good, though the disk works again.
        let descriptor = open(mount.directory + "/lost", O_RDONLY | O_CLOEXEC)
        for _ in 0..<3 {
            #expect(fsync(descriptor) == -1 && errno == EIO)
            mount.fail("")
        }
        close(descriptor)
        #expect(mount.write("new", contents(3), sync: false) == EROFS)
        #expect(mkdir(mount.directory + "/directory", 0o755) == -1 && errno == EROFS)
        #expect(unlink(mount.directory + "/kept") == -1 && errno == EROFS)
        // Both can be read, what is in memory alone included.
        for (name, seed) in [("kept", 1), ("lost", 2)] as [(String, UInt8)] {
            #expect(mount.read(name).flatMap { $0 ?? [] } == contents(seed), "\(name)")
        }

        let text = daybook("stat", mount.directory)
        #expect(text.status == 1)
        #expect(text.output.contains("state             failed: read-only"), "\(text.output)")
        #expect(text.output.contains("Input/output error"), "\(text.output)")
        #expect(text.errors.contains("read-only since"), "\(text.errors)")
        let json = daybook("stat", "--json", mount.directory)
        #expect(json.output.contains("\"state\":\"failed\"") && json.output.contains("\"durable_sequence\":2"), "\(json.output)")
        #expect(mount.messages.contains("the filesystem is now read-only") && mount.messages.contains(": \(mount.image)"), "\(mount.messages)")

        // And when the disk cannot even be read.
        mount.fail("write flush read 0")
        #expect(daybook("stat", mount.directory).errors.contains("read-only since"))
        #expect(mount.unmount())
        let status = daybook("stat", mount.image)
        #expect(status.status == 0 && status.output.contains("unclean"), "\(status.output)")
        try mount.mount()
        #expect(mount.read("kept").flatMap { $0 ?? [] } == contents(1))
        #expect(mount.write("new", contents(3), sync: true) == 0)
        #expect(mount.unmount())
        #expect(daybook("fsck", "-n", "-f", mount.image).status == 0)
    }

    @Test func aBadBlockIsAnErrorForItsReader() throws {
        let mount = try FaultyMount()
        #expect(mount.write("file", contents(1), sync: true) == 0)
        #expect(mount.write("other", contents(2), sync: true) == 0)
        #expect(mount.unmount())
        // Where the third block of the file lies.
        let image = ProcessFiles.contents(mount.image)!
        let wanted = Array(contents(1)[8192..<12_288])
        let block = try #require((16..<image.count >> 12).first { Array(image[($0 << 12)..<($0 << 12 + 4096)]) == wanted })
        try mount.mount()
        mount.fail("read \(block)")
        let parts = mount.read("file")
        #expect(parts.indices.filter { parts[$0] == nil } == [2])
        for index in [0, 1, 3, 4] { #expect(parts[index] == Array(contents(1)[(index << 12)..<(index << 12 + 4096)])) }
        #expect(mount.read("other").flatMap { $0 ?? [] } == contents(2))
        #expect(mount.messages.contains("/file: ") && mount.messages.contains("block \(block)"), "\(mount.messages)")
        #expect(mount.write("more", contents(3), sync: true) == 0)
        // Written anew it is whole.
        #expect(mount.write("file", contents(4), sync: true) == 0)
        #expect(mount.read("file").flatMap { $0 ?? [] } == contents(4))
        #expect(daybook("stat", mount.directory).status == 0)
        #expect(mount.unmount())
    }
}
