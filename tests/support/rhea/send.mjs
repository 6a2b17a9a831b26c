// Sends messages by AMQP 1.0 and prints the replies as lines of JSON.
//   node send.mjs PORT < {"to": QUEUE, "messages": [...], "from": QUEUE, "replies": NUMBER}
// A message: {"text": BODY, "section": "data"|"value"|"sequence", "reply_to_queue": QUEUE,
// "ulong": NUMBER as correlation id}, and what rhea sends, such as "message_id" and "ttl".
import rhea from "rhea";
import { readFileSync } from "node:fs";

const { to, messages, from, replies } = JSON.parse(readFileSync(0, "utf8"));
const sections = {
  data: (text) => rhea.message.data_section(Buffer.from(text)),
  value: (text) => text,
  sequence: (text) => rhea.message.sequence_section([text]),
};
const container = rhea.create_container();
const connection = container.connect({
  port: Number(process.argv[2]), host: "127.0.0.1", username: "guest", password: "guest", reconnect: false,
});
let unsettled = messages.length;
let missing = replies ?? 0;
const closeIfDone = () => unsettled || missing || connection.close();

container.on("message", ({ message }) => {
  const { body, ...rest } = message;
  const text = (body.content ?? body).toString();
  console.log(JSON.stringify({ ...rest, text }));
  missing -= 1;
  closeIfDone();
});
container.on("connection_open", () => {
  const prefix = Number.parseInt(connection.properties.version) < 4 ? "/amq/queue/" : "/queues/";
  const address = (queue) => prefix + encodeURIComponent(queue);
  if (from) connection.open_receiver(address(from));
  connection.open_sender(address(to)).once("sendable", ({ sender }) => {
    for (const { text, section, reply_to_queue, ulong, ...message } of messages) {
      if (reply_to_queue) message.reply_to = address(reply_to_queue);
      if (ulong) message.correlation_id = rhea.types.wrap_ulong(ulong);
      const body = sections[section ?? "data"](text);
      sender.send({ durable: true, content_type: "application/json", ...message, body });
    }
  });
});
container.on("accepted", () => {
  unsettled -= 1;
  closeIfDone();
});
for (const fault of ["rejected", "released", "connection_error", "session_error", "sender_error", "receiver_error", "disconnected"]) {
  container.on(fault, (context) => {
    if (fault === "disconnected" && !unsettled && !missing) return;
    const error = context.delivery?.remote_state ?? context[fault.split("_")[0]]?.error ?? context.error;
    console.error(fault, JSON.stringify(error));
    process.exit(1);
  });
}
