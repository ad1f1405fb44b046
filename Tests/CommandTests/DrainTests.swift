// Goal: `daybook sync`, and SIGTERM to a mount in use, keep stores to mapped files that nobody has synced.
// Method: far more pages than the kernel sends on before the first is answered; while the daemon stands still they become requests
// of the kernel's, so that all of them are outstanding when syncfs(2) has returned. Then the daemon goes on, and is killed
// the moment that the call returns.

import Device
import FuseAdapter
import Glibc
import Memory
import Testing

@testable import daybook

@Suite(.enabled(if: canMount, "not root, or no /dev/fuse"), .serialized, .timeLimit(.minutes(2)))
struct Draining {
    private static let pages = 8000
    private static let stride = 2 * 4096

    /// A file of which every second page is stored to by way of a shared mapping.
    private struct Mapping {
        let address: UnsafeMutableRawPointer
        let file: Int32

        init(_ mounted: Mounted) throws {
            file = open(mounted.directory + "/mapped", O_RDWR | O_CREAT | O_CLOEXEC, 0o644)
            let zeros = [UInt8](repeating: 0, count: Draining.pages * Draining.stride)
            try #require(write(file, zeros, zeros.count) == zeros.count)
            let mapped = mmap(nil, zeros.count, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
            address = try #require(mapped == MAP_FAILED ? nil : mapped)
        }

        func store() {
            for page in 0..<Draining.pages {
                (address + page * Draining.stride).storeBytes(of: UInt64(page) + 1, as: UInt64.self)
            }
        }

        func end() {
            munmap(address, Draining.pages * Draining.stride)
            close(file)
        }
    }

    /// How many pages hold what was stored, after a new mount.
    private func kept(_ mounted: Mounted) throws -> Int {
        try mounted.mount()
        let contents = try #require(ProcessFiles.contents(mounted.directory + "/mapped"))
        try #require(contents.count == Self.pages * Self.stride)
        return (0..<Self.pages).count { page in
            contents.withUnsafeBytes { $0.load(fromByteOffset: page * Self.stride, as: UInt64.self) } == UInt64(page) + 1
        }
    }

    @Test func whatTheKernelStillHeldIsDurable() throws {
        let mounted = try Mounted(options: "commit=3600")
        let mapping = try Mapping(mounted)
        let directory = open(mounted.directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        #expect(synchronize(directory) == 0)
        mapping.store()
        let process = try #require(mounted.daemon)
        kill(process, SIGSTOP)
        // Until then the call cannot have kept its promise.
        let resumer = Thread(name: "resumer") {
            usleep(1_000_000)
            kill(process, SIGCONT)
        }
        let status = synchronize(directory)
        kill(process, SIGKILL)
        resumer.join()
        #expect(status == 0)
        close(directory)
        mapping.end()
        mounted.detach()
        #expect(try kept(mounted) == Self.pages)
    }

    @Test func aMountInUseThatIsToEndLosesNothing() throws {
        let mounted = try Mounted(options: "commit=3600")
        let mapping = try Mapping(mounted)
        mapping.store()
        let process = try #require(mounted.daemon)
        kill(process, SIGTERM)
        mounted.waitForDaemon()
        mapping.end()
        mounted.detach()
        #expect(try kept(mounted) == Self.pages)
    }
}
