// ImageSource: what a command was pointed at, and reading it while somebody else may be writing to it.
//
//   IMAGE, DEVICE     the image itself
//   DIR, DIR/a/b      the image mounted there (/proc/self/mountinfo), and where in it; committed first
//
// A mounted image moves on under its reader. What a reader has pinned stays (Device/ImageLock.swift, K2): from a pinned
// checkpoint on, tree, data and journal are whole for as long as the pin is held. What has no history (superblock slots, space tree)
// may be replaced between two reads; then a checksum or an identity does not fit, and reading starts over from the superblock.

import CSupport
import Device
import Format
import Glibc
import Journal
import Memory
import Space
import Volume

final class ImageSource {
    let device: FileDevice
    /// Absolute, without symbolic links.
    let path: String
    /// The mount that the argument lies in, if it named a directory.
    let mount: MountedFilesystem?
    /// What the argument names within the filesystem: `/` unless it lies inside of a mount.
    let inside: String

    static let attempts = 8

    init(_ argument: String) throws(CommandError) {
        guard let resolved = ProcessFiles.resolved(argument) else { throw .missing(argument) }
        var status = stat()
        // Not lstat: resolved. A dead mount answers with ENOTCONN, but its image can still be read.
        let found = stat(resolved, &status) == 0
        guard found || errno == ENOTCONN else { throw .system(argument) }
        let kind = found ? status.st_mode & S_IFMT : S_IFDIR
        if kind == S_IFBLK || kind == S_IFREG && (Self.looksLikeImage(resolved) || Self.daybookHolding(resolved) == nil) {
            (mount, inside, path) = (nil, "/", resolved)
        } else if let holding = Self.daybookHolding(resolved) {
            guard holding.source.hasPrefix("/") else { throw CommandError("\(argument): cannot tell which image is mounted here") }
            (mount, inside, path) = (holding, holding.inside(resolved), holding.source)
        } else if kind == S_IFDIR {
            throw CommandError("\(argument): not a mounted Daybook filesystem, and not an image")
        } else {
            throw CommandError("\(argument): neither a regular file, nor a block device, nor in a mounted Daybook filesystem")
        }
        do throws(DeviceError) { device = try FileDevice(path: path, access: .readOnly) } catch {
            throw CommandError(error.description)
        }
        if mount != nil { Self.commit(resolved, kind) }
    }

    /// Who asks about a mounted directory means what is in it now: what was done so far is made durable, as by any other
    /// fsync, and so can be read from the image. Should that fail, what is durable already is shown.
    private static func commit(_ path: String, _ kind: mode_t) {
        guard kind == S_IFDIR || kind == S_IFREG else { return }
        let descriptor = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
        guard descriptor >= 0 else { return }
        fsync(descriptor)
        close(descriptor)
    }

    /// Makes durable what was done in the mount so far; false where there is none, or it cannot be.
    func commit() -> Bool {
        guard let mount else { return false }
        let descriptor = open(mount.mountpoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { return false }
        defer { close(descriptor) }
        return fsync(descriptor) == 0
    }

    private static func daybookHolding(_ path: String) -> MountedFilesystem? {
        MountedFilesystem.holding(path).flatMap { $0.isDaybook ? $0 : nil }
    }

    /// Whether the file begins as an image does, so that an image kept inside of a mounted filesystem is taken for itself.
    private static func looksLikeImage(_ path: String) -> Bool {
        guard let device = try? FileDevice(path: path, access: .readOnly) else { return false }
        let buffer = AlignedBuffer(count: blockSize)
        return Superblock.slots.contains { slot in
            slot.value < device.blockCount && (try? device.read(slot, into: buffer.bytes)) != nil
                && Superblock.looksLikeOne(buffer.bytes)
        }
    }

    /// Whether a writer is at work: then what does not fit may only be out of date.
    var isLive: Bool { ImageLock.hasWriter(descriptor: device.descriptor) }

    /// Where this image is mounted, as far as can be seen from here.
    var mounts: [MountedFilesystem] { MountedFilesystem.all().filter { $0.isDaybook && $0.source == path } }

    /// Why and since when the mount that the argument lies in is read-only, if its device failed. Only its daemon knows.
    var failure: VolumeFailure? {
        guard let mount else { return nil }
        var value = [UInt8](repeating: 0, count: 4096)
        let count = daybook_get_xattr(mount.mountpoint, VolumeFailure.attribute, &value, value.count)
        return count > 0 ? VolumeFailure(Array(value.prefix(count))) : nil
    }

    // MARK: reading a moving image

    /// Runs `body` on the image, again from the superblock when a writer has moved it on meanwhile.
    func reading<R>(_ body: (Image) throws(OpenError) -> R) throws(CommandError) -> R {
        var attempt = 1
        while true {
            do throws(OpenError) { return try body(Image(device)) } catch {
                let mayPass = error.reason == .damaged || error.reason == .device || error.reason == .noSuchPoint
                guard mayPass, attempt < Self.attempts, isLive else { throw CommandError(error.description) }
                usleep(UInt32(attempt) * 20_000)
                attempt += 1
            }
        }
    }

    /// Pins the checkpoint that `choose` picks, then gives both to `body`, which may rely on it (K2). The pin is held until `body`
    /// returns.
    func pinned<R>(
        _ choose: (Image) throws(OpenError) -> CheckpointItem, _ body: (Image, CheckpointItem) throws(OpenError) -> R
    ) throws(CommandError) -> R {
        try reading { (image) throws(OpenError) in
            let item = try choose(image)
            let pin: ImageLock
            do throws(LockError) {
                pin = try ImageLock.pin(descriptor: device.descriptor, sequence: item.sequence)
            } catch { throw OpenError(.noSuchPoint, "\(path): \(error.description)") }
            defer { pin.release() }
            let current = try Image(device)
            guard current.horizon <= item.sequence else {
                throw OpenError(.noSuchPoint, "\(path): sequence \(item.sequence) is no longer retained")
            }
            return try body(current, item)
        }
    }

    /// Pins the oldest retained checkpoint, for whoever reads the journal from its beginning. Without a readable index what the
    /// superblock slots name has to do; `loss` then says what is missing.
    func pinnedFromHorizon<R>(
        _ body: (Image, _ checkpoints: [CheckpointItem], _ loss: String?) throws(OpenError) -> R
    ) throws(CommandError) -> R {
        try reading { (image) throws(OpenError) in
            for item in try retained(image).items {
                // The writer may be ahead of what the superblock says of the horizon.
                guard let pin = try? ImageLock.pin(descriptor: device.descriptor, sequence: item.sequence) else { continue }
                defer { pin.release() }
                let current = try Image(device)
                guard current.horizon <= item.sequence else { continue }
                let (items, loss) = try retained(current)
                return try body(current, items.filter { $0.sequence >= item.sequence }, loss)
            }
            throw OpenError(.noSuchPoint, "\(path): no retained checkpoint can be held")
        }
    }

    private func retained(_ image: Image) throws(OpenError) -> (items: [CheckpointItem], loss: String?) {
        do throws(OpenError) {
            let items = try image.retained()
            if !items.isEmpty { return (items, nil) }
            throw OpenError(.damaged, "\(path): the index names no checkpoint")
        } catch {
            // While a writer is at work this is no loss, only out of date.
            guard !isLive else { throw error }
            let slots = [image.olderSlot?.checkpoint, image.superblock.checkpoint].compactMap { $0 }
            return (slots.sorted { $0.sequence < $1.sequence }, error.description)
        }
    }
}

extension Image {
    /// The checkpoints whose journal is retained, oldest first.
    func retained() throws(OpenError) -> [CheckpointItem] {
        let items: [CheckpointItem]
        do throws(Space.Failure) { items = try space.checkpoints() } catch { throw error.asOpenError(device) }
        return items.filter { $0.sequence >= horizon }
    }
}

extension Space.Failure {
    func asOpenError(_ device: any BlockDevice) -> OpenError {
        switch self {
        case .damaged(let text): OpenError(.damaged, "\(device.name): \(text)")
        case .device(let error): OpenError(.device, error.description)
        }
    }
}

/// `part` as seen from the directory `base`, which is absolute within the filesystem, without `.` and `..`.
func joined(_ base: String, _ part: [UInt8]) -> [UInt8] {
    let slash = UInt8(ascii: "/")
    var names: [ArraySlice<UInt8>] = []
    for name in (part.first == slash ? part : Array(base.utf8) + [slash] + part).split(separator: slash) {
        if name.elementsEqual([0x2e]) { continue }
        if name.elementsEqual([0x2e, 0x2e]) { _ = names.popLast() } else { names.append(name) }
    }
    return names.isEmpty ? [slash] : Array(names.map { [slash] + $0 }.joined())
}

/// Whether an argument is not what was typed: its bytes are not UTF-8. The names of images and mount points have to be.
func isUnreadable(_ text: String) -> Bool { argumentBytes(text) != Array(text.utf8) }

/// The bytes behind a command-line argument, which the parser shows as text even where they are not UTF-8.
func argumentBytes(_ text: String) -> [UInt8] {
    guard text.unicodeScalars.contains("\u{fffd}") else { return Array(text.utf8) }
    for index in 0..<Int(CommandLine.argc) {
        guard let argument = CommandLine.unsafeArgv[index] else { continue }
        let bytes = Array(UnsafeRawBufferPointer(start: argument, count: strlen(argument)))
        if String(decoding: bytes, as: UTF8.self) == text { return bytes }
    }
    return Array(text.utf8)
}
