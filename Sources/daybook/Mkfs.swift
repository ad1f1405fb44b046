// daybook mkfs: a new filesystem.
//
//   checks that change nothing ──► lock ──► (old signatures wiped) ──► Formatter ──► synced, directory too
//
// (F1) A target that is mounted, locked, swapped on, or behind a loop device is refused, whatever the options.
// (F2) One with contents of any known kind, or with unknown contents where a file is concerned, is refused without -f.
// (F3) A file that this command created is gone again if it fails.

import ArgumentParser
import CBlkid
import Device
import Format
import Glibc
import Memory
import Volume

struct MkfsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "mkfs", abstract: "Make a filesystem in an image file or on a block device.",
        discussion: """
            An image file that does not exist is created, sparse, 20 GiB unless --size says otherwise. SIZE takes the suffixes K, M, G and T.
            """)

    static let defaultSize = 20 << 30

    @Option(name: [.customShort("L"), .long], help: "A name of at most 64 bytes.")
    var label = ""
    @Option(help: "Size of the filesystem, and of the image file.")
    var size: String?
    @Flag(name: [.customShort("f"), .long], help: "Overwrite what is there.")
    var force = false
    @Argument(help: ArgumentHelp("Image file or block device.", valueName: "image|device"))
    var image: String

    func run() throws {
        guard label.utf8.count <= Superblock.labelBytes else {
            throw UsageError("the label has \(label.utf8.count) bytes; \(Superblock.labelBytes) are possible")
        }
        guard !label.utf8.contains(0) else { throw UsageError("the label contains a zero byte") }
        let bytes = try size.map { (text) throws(UsageError) -> Int in
            guard let bytes = parseSize(text) else { throw UsageError("--size \(text): not a size (for example 512M or 20G)") }
            return bytes & ~(blockSize - 1)
        }
        if let bytes { try checkSize(bytes, "--size \(size!)") }

        let target = try FormatTarget(image, size: bytes)
        let superblock: Superblock
        do {
            superblock = try target.format(label: label, force: force)
        } catch {
            target.undo()
            throw error
        }
        report(superblock, target)
    }

    private func report(_ superblock: Superblock, _ target: FormatTarget) {
        let chunk = UInt64(superblock.chunkBlocks) << UInt64(blockShift)
        print("\(target.path):")
        print("  UUID     \(superblock.id)")
        if !superblock.label.isEmpty { print("  label    \(shown(Array(superblock.label.utf8)))") }
        print("  size     \(sizeText(superblock.blockCount << UInt64(blockShift))), \(superblock.blockCount) blocks of \(blockSize) bytes")
        print("  journal  chunks of \(sizeText(chunk))")
    }
}

private func checkSize(_ bytes: Int, _ what: String) throws(CommandError) {
    let minimum = Int(Formatter.minimumBlocks) << blockShift
    guard bytes >= minimum else {
        throw CommandError("\(what): \(sizeText(UInt64(bytes))) is too small; at least \(sizeText(UInt64(minimum))) are needed")
    }
}

/// The file or device to be formatted.
private final class FormatTarget {
    let path: String
    private let created: Bool
    private let isBlockDevice: Bool
    /// Keeps others from mounting a block device meanwhile.
    private var claim: Int32 = -1
    private let newSize: Int?

    /// Finds the target, or creates it empty; nothing that exists is changed. `size` in bytes, or what fits the target.
    init(_ argument: String, size: Int?) throws {
        var status = stat()
        if stat(argument, &status) != 0 {
            guard errno == ENOENT else { throw CommandError.system(argument) }
            let descriptor = open(argument, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
            guard descriptor >= 0 else { throw CommandError.system("\(argument): cannot be created") }
            close(descriptor)
            (path, created, isBlockDevice) = (ProcessFiles.resolved(argument) ?? argument, true, false)
            newSize = size ?? MkfsCommand.defaultSize
            return
        }
        path = ProcessFiles.resolved(argument) ?? argument
        created = false
        switch status.st_mode & S_IFMT {
        case S_IFREG:
            isBlockDevice = false
            // A file that somebody has made room for with touch(1) is as good as none.
            newSize = size ?? (status.st_size == 0 ? MkfsCommand.defaultSize : nil)
            if newSize == nil { try checkSize(Int(status.st_size), path) }
        case S_IFBLK:
            isBlockDevice = true
            newSize = nil
            guard size == nil else { throw UsageError("--size: a filesystem fills its device") }
        default: throw CommandError("\(path): neither a regular file nor a block device")
        }
    }

    deinit { if claim >= 0 { close(claim) } }

    /// Takes back what was created (F3).
    func undo() { if created { unlink(path) } }

    func format(label: String, force: Bool) throws(CommandError) -> Superblock {
        // An interrupt would leave half a filesystem; the work takes moments.
        var blocked = sigset_t()
        for signal in [SIGINT, SIGTERM, SIGHUP] { sigaddset(&blocked, signal) }
        var before = sigset_t()
        sigprocmask(SIG_BLOCK, &blocked, &before)
        defer { sigprocmask(SIG_SETMASK, &before, nil) }

        // The lock belongs to this descriptor's open file, so the one that is formatted through has to be opened again below.
        let guardian = try openTarget()
        let lock: ImageLock
        do throws(LockError) {
            lock = try ImageLock.afterUnmount(path: path) { () throws(LockError) in
                try ImageLock.acquireWriter(descriptor: guardian.descriptor, path: path)
            }
        } catch { throw CommandError(error.description) }
        try checkUse()
        guard lock.excludeReaders() else { throw CommandError("\(path) is in use: another process is reading it") }
        if !created && !force { try checkContents(guardian) }
        try clear(guardian, wipe: force)

        let device = newSize == nil ? guardian : try openTarget()
        do throws(OpenError) {
            let superblock = try Formatter.format(device, options(label))
            try synchronize(device)
            withExtendedLifetime(guardian) {}
            return superblock
        } catch { throw CommandError(error.description) }
    }

    private func openTarget() throws(CommandError) -> FileDevice {
        do throws(DeviceError) { return try FileDevice(path: path, access: .readWrite) } catch {
            throw CommandError(error.description)
        }
    }

    private func options(_ label: String) -> FormatOptions {
        var random = SystemRandomNumberGenerator()
        // Version 4 (random), variant 1, as in RFC 4122.
        let high = random.next() & 0xffff_ffff_ffff_0fff | 0x4000
        let low = random.next() & 0x3fff_ffff_ffff_ffff | 0x8000_0000_0000_0000
        var options = FormatOptions(
            label: label, id: FilesystemID(high: high, low: low), seed: HashSeed(k0: random.next(), k1: random.next()),
            nonce: random.next(), created: .now)
        // Whoever makes an image for himself wants to use it.
        options.uid = geteuid()
        options.gid = getegid()
        return options
    }

    // MARK: checks

    /// (F1)
    private func checkUse() throws(CommandError) {
        if let mount = MountedFilesystem.all().last(where: { $0.source == path }) {
            throw CommandError("\(path) is in use: mounted on \(mount.mountpoint)")
        }
        if let loop = LoopDevices.over(path) { throw CommandError("\(path) is in use: it is behind \(loop)") }
        guard isBlockDevice else { return }
        claim = open(path, O_RDWR | O_EXCL | O_CLOEXEC)
        guard claim >= 0 else {
            throw errno == EBUSY
                ? CommandError("\(path) is in use: mounted, or part of something that is") : .system(path)
        }
    }

    /// (F2)
    private func checkContents(_ device: FileDevice) throws(CommandError) {
        if let label = existingDaybook(device) {
            throw CommandError("\(path) contains a Daybook filesystem\(label.isEmpty ? "" : " (\(label))"); use -f to overwrite it")
        }
        if let kind = try Signatures.known(path) {
            throw CommandError("\(path) contains \(kind); use -f to overwrite it")
        }
        if !isBlockDevice, try beginsWithData() {
            throw CommandError("\(path) contains data of an unknown kind; use -f to overwrite it")
        }
    }

    /// The label of a Daybook filesystem, if one seems to be there.
    private func existingDaybook(_ device: FileDevice) -> String? {
        let buffer = AlignedBuffer(count: blockSize)
        for (slot, block) in Superblock.slots.enumerated() where block.value < device.blockCount {
            guard (try? device.read(block, into: buffer.bytes)) != nil, Superblock.looksLikeOne(buffer.bytes) else { continue }
            return (try? Superblock(buffer.bytes, slot: slot)).map { shown(Array($0.label.utf8)) } ?? ""
        }
        return nil
    }

    /// Whether the first part of the file has anything but zeros.
    private func beginsWithData() throws(CommandError) -> Bool {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw .system(path) }
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: 1 << 16)
        let count = read(descriptor, &bytes, bytes.count)
        guard count >= 0 else { throw .system(path) }
        return bytes.prefix(count).contains { $0 != 0 }
    }

    // MARK: making room

    /// Leaves nothing of what was there, so that nobody takes the device for what it was, and gives a file its size.
    private func clear(_ device: FileDevice, wipe: Bool) throws(CommandError) {
        if wipe && !created && device.blockCount > 0 {
            try Signatures.probing(path, O_RDWR) { (probe) throws(CommandError) in
                while blkid_do_probe(probe) == 0 {
                    guard blkid_do_wipe(probe, 0) == 0 else { throw .system("\(path): an old signature cannot be removed") }
                }
            }
        }
        guard !isBlockDevice else { return }
        if !created && device.blockCount > 0 { device.discard(BlockNumber(0), count: device.blockCount) }
        if let newSize {
            guard ftruncate(device.descriptor, off_t(newSize)) == 0 else {
                throw .system("\(path): cannot be given \(sizeText(UInt64(newSize)))")
            }
        }
    }

    /// After this the file survives a power cut, its name too.
    private func synchronize(_ device: FileDevice) throws(OpenError) {
        func failure(_ what: String) -> OpenError { OpenError(.device, "\(what): \(String(cString: strerror(errno)))") }
        guard fsync(device.descriptor) == 0 else { throw failure(path) }
        guard !isBlockDevice else { return }
        let parent = ParentDirectory(of: path)
        guard parent.synchronize() else { throw failure(parent.path) }
    }
}
