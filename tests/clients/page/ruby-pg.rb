require 'logger'
require 'pg'

LOG = Logger.new($stderr)
User = Struct.new(:id)

# THE BLOCK

conn = PG.connect
$stdin.each_line do |line|
  verb, key, code = line.split
  user = User.new(key.to_i)
  puts(verb == 'enroll' ? enroll(conn, user) : second_factor(conn, user, code))
  $stdout.flush
end
