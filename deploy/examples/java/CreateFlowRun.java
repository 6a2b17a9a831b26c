// Sends one create request and prints the flow run record.
//   java -cp 'amqp-client.jar:slf4j-api.jar' CreateFlowRun.java FLOW_ID [IDEMPOTENCY_KEY]
// The two jars: com.rabbitmq:amqp-client and org.slf4j:slf4j-api, any release of amqp-client from 5.0 on.
import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.Delivery;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;

public class CreateFlowRun {
    static final String REPLY_TO = "amq.rabbitmq.reply-to";

    public static void main(String[] arguments) throws Exception {
        Map<String, String> environment = System.getenv();
        String queue = environment.getOrDefault("WORKER_QUEUE", "flow-runs.create");
        String key = arguments.length > 1 ? quote(arguments[1]) : "null";
        String request = String.format("{\"flow_id\": %s, \"idempotency_key\": %s}", quote(arguments[0]), key);

        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(environment.getOrDefault("WORKER_AMQP_URL", "amqp://guest:guest@localhost:5672/"));
        if (factory.getVirtualHost().isEmpty()) {
            factory.setVirtualHost("/"); // what a URL that ends in a slash means to the worker
        }
        int status;
        try (Connection connection = factory.newConnection("create-flow-run"); Channel channel = connection.createChannel()) {
            CompletableFuture<Delivery> reply = new CompletableFuture<>();
            channel.basicConsume(REPLY_TO, true, (tag, delivery) -> reply.complete(delivery), tag -> { });
            channel.addReturnListener((code, text, exchange, routingKey, properties, body) -> reply.completeExceptionally(
                new IllegalStateException("There is no queue " + routingKey + ": has a worker declared it?")));
            channel.confirmSelect();

            String id = UUID.randomUUID().toString();
            AMQP.BasicProperties properties = new AMQP.BasicProperties.Builder()
                .contentType("application/json")
                .deliveryMode(2)
                .replyTo(REPLY_TO)
                .correlationId(id)
                .messageId(id) // makes a second publish of the same message safe
                .build();
            channel.basicPublish("", queue, true, properties, request.getBytes(StandardCharsets.UTF_8));
            channel.waitForConfirmsOrDie(10_000);

            Delivery delivery = reply.get(30, TimeUnit.SECONDS);
            status = ((Number) delivery.getProperties().getHeaders().get("status")).intValue();
            System.out.println(status + " " + delivery.getProperties().getType());
            System.out.println(new String(delivery.getBody(), StandardCharsets.UTF_8));
        }
        System.exit(status < 400 ? 0 : 1);
    }

    /** A JSON string. (A program of yours has a JSON library.) */
    static String quote(String text) {
        StringBuilder quoted = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            quoted.append(c == '"' || c == '\\' || c < ' ' ? String.format("\\u%04x", (int) c) : String.valueOf(c));
        }
        return quoted.append('"').toString();
    }
}
