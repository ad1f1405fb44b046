// DaemonLog: where the daemon's messages go. In the foreground to standard error; in the background to syslog, for nobody
// would see them otherwise.

import Glibc
import Logging

/// Starts a logger for the daemon that serves `image`.
func daemonLogger(image: String, foreground: Bool) -> Logger {
    Logger(label: "daybook") { _ in
        if foreground { return LineLog(prefix: "daybook: ") }
        return SyslogLog(prefix: image + ": ")
    }
}

private func priority(_ level: Logger.Level) -> Int32 {
    switch level {
    case .trace, .debug: LOG_DEBUG
    case .info: LOG_INFO
    case .notice: LOG_NOTICE
    case .warning: LOG_WARNING
    case .error: LOG_ERR
    case .critical: LOG_CRIT
    }
}

private struct SyslogLog: LogHandler {
    let prefix: String
    var logLevel = Logger.Level.info
    var metadata: Logger.Metadata = [:]

    init(prefix: String) {
        self.prefix = prefix
        // A static string: syslog keeps the pointer.
        openlog("daybook", LOG_PID, LOG_DAEMON)
    }

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        (prefix + event.message.description).withCString { text in
            withVaList([text]) { vsyslog(priority(event.level), "%s", $0) }
        }
    }
}

private struct LineLog: LogHandler {
    let prefix: String
    var logLevel = Logger.Level.info
    var metadata: Logger.Metadata = [:]

    init(prefix: String) { self.prefix = prefix }

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) { printError(prefix + event.message.description) }
}
