# frozen_string_literal: true

# The part of replsock that lives in a Ruby process (2.5 on). A thread of its own serves the socket.
module ReplsockAgent
  def self.start
    told = ENV.delete('REPLSOCK_AGENT')
    # The app's children are not meant.
    option = "-r#{__FILE__.delete_suffix('.rb')}"
    rest = (ENV['RUBYOPT'] || '').split.reject { |word| word == option }.join(' ')
    rest.empty? ? ENV.delete('RUBYOPT') : ENV['RUBYOPT'] = rest
    return unless told

    require 'socket'
    require 'json'
    @settings = JSON.parse(told)
    @begun = Time.now
    @count = 0
    listen
    at_exit { forget }
    Process.singleton_class.prepend(Forked) if Process.respond_to?(:_fork)
  rescue StandardError, LoadError
    # Whatever it is: the app goes on without us.
    nil
  end

  def self.own(directory)
    Dir.mkdir(directory, 0o700) unless File.exist?(directory)
    found = File.lstat(directory)
    raise 'not ours' unless found.directory? && [Process.euid, 0].include?(found.uid) && File.writable?(directory)
    raise 'others can write there' if (found.mode & 0o022) != 0 && (found.mode & 0o1000).zero?

    directory
  end

  def self.home
    own(@settings['dir'])
    own(File.join(@settings['dir'], @settings['app']))
  rescue StandardError
    mine = "/tmp/replsock-#{Process.euid}"
    own(mine)
    own(File.join(mine, @settings['app']))
  end

  # An address holds 107 bytes (unix(7)).
  def self.reach(directory, path)
    return yield path if path.bytesize <= 107

    File.open(directory) { |handle| yield "/proc/self/fd/#{handle.fileno}/#{File.basename(path)}" }
  end

  # What a process of our number left behind is removed; one in another pid namespace may have it, and live.
  def self.free(directory)
    9.times do |attempt|
      path = File.join(directory, "#{Process.pid}#{"-#{attempt}" if attempt.positive?}.sock")
      return path unless File.exist?(path) || File.symlink?(path)

      begin
        reach(directory, path) { |name| UNIXSocket.new(name).close }
      rescue Errno::ECONNREFUSED
        File.unlink(path)
        return path
      rescue SystemCallError
        next
      end
    end
    raise 'no name is free'
  end

  def self.listen
    directory = home
    @path = free(directory)
    before = File.umask(0o177)
    begin
      @server = reach(directory, @path) { |name| UNIXServer.new(name) }
    ensure
      File.umask(before)
    end
    @inode = File.lstat(@path).ino
    @pid = Process.pid
    server = @server
    Thread.new { accept(server) }
  end

  # Who cleans up /tmp may have removed the socket: it is looked for so often, in seconds.
  LOOK = 30

  def self.accept(server)
    loop do
      if IO.select([server], nil, nil, LOOK)
        client = server.accept
        uid = client.getpeereid[0]
        [Process.euid, 0].include?(uid) ? Thread.new { talk(client) } : client.close
      elsif !there?
        server.close
        return listen
      end
    rescue Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, ThreadError
      sleep 0.1
    end
  rescue StandardError
    nil
  end

  def self.there?
    File.lstat(@path).ino == @inode
  rescue Errno::ENOENT
    false
  rescue SystemCallError
    true
  end

  # A worker (Ruby 3.1 on): its parent's thread is not here, and its parent's socket not its own.
  module Forked
    def _fork
      pid = super
      ReplsockAgent.forked if pid.zero?
      pid
    end
  end

  def self.forked
    @server.close
    listen
  rescue StandardError
    nil
  end

  def self.talk(client)
    first = client.read(1)
    if first == "\0"
      frames(client)
    elsif first
      client.write("#{evaluate('code' => first + client.read.to_s)['text']}\n")
    end
  rescue StandardError
    nil
  ensure
    client.close
  end

  def self.frame(kind, body)
    [kind | (body.bytesize << 8)].pack('V') + body
  end

  def self.frames(client)
    client.write(frame(1, JSON.generate(version: 1, mode: 'agent', app: @settings['app'], pid: Process.pid)))
    held = +''
    while (head = client.read(4)) && head.bytesize == 4
      word = head.unpack1('V')
      kind = word & 0xff
      length = word >> 8
      return if length > 4 << 20 || kind == 3

      body = length.zero? ? '' : client.read(length)
      next unless kind == 2

      held << body.force_encoding('UTF-8')
      while (line = held.slice!(/\A[^\n]*\n/))
        next if line.strip.empty?

        answer = "#{JSON.generate(ask(JSON.parse(line)))}\n".b
        (0...answer.bytesize).step(0xffffff) { |at| client.write(frame(2, answer.byteslice(at, 0xffffff))) }
      end
    end
  end

  def self.ask(request)
    answer = { 'id' => request['id'], 'ok' => true }
    case request['op']
    when 'eval' then answer.merge(evaluate(request))
    when 'info'
      answer.merge('app' => @settings['app'], 'pid' => Process.pid, 'runtime' => 'ruby', 'version' => RUBY_VERSION,
                   'uptime_s' => (Time.now - @begun).round, 'draining' => false)
    when 'check' then answer.merge('whole' => true)
    when 'ping' then answer
    else answer.merge('ok' => false, 'text' => "not in Ruby: #{request['op'].to_s[0, 40]}")
    end
  end

  def self.evaluate(request)
    return { 'ok' => false, 'type' => 'error', 'text' => 'Ruby cannot look for side effects: not without --read-only' } if request['read_only']

    begun = Process.clock_gettime(Process::CLOCK_MONOTONIC)
    @count += 1
    out = { 'ok' => true, 'type' => 'object' }
    begin
      value = TOPLEVEL_BINDING.eval(request['code'].to_s, "replsock-#{@count}")
      out['type'] = 'undefined' if value.nil?
      out['json'] = JSON.generate(value) if request['mode'] == 'json'
      out['text'] = request['mode'] == 'raw' && value.is_a?(String) ? value : value.inspect
    rescue SystemExit
      out.update('ok' => false, 'would_end' => true, 'message' => 'exit would end the thread, not the app', 'text' => 'SystemExit')
    rescue Exception => e # rubocop:disable Lint/RescueException
      at = (e.backtrace || []).select { |line| line.include?('replsock-') }.reject { |line| line.start_with?(__FILE__) }
      out.update('ok' => false, 'message' => e.message, 'text' => ["#{e.class}: #{e.message}", *at.map { |line| "    #{line}" }].join("\n"))
    end
    limit = request['limit'].to_i
    out.update('text' => out['text'][0, limit], 'truncated' => true) if limit.positive? && out['text'].length > limit
    out.merge('ms' => ((Process.clock_gettime(Process::CLOCK_MONOTONIC) - begun) * 1000).round(3))
  end

  def self.forget
    File.unlink(@path) if @pid == Process.pid && there?
  rescue StandardError
    nil
  end
end

ReplsockAgent.start
